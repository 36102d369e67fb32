"""Which models of transformers are this decoder, from their `config.json` alone."""

import json

import numpy as np
import pytest

from pecft_jax.backbones import decoder, load_llama, read_llama_config, save_llama

# As transformers writes it, of a tiny model.
LLAMA = {
  'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'attention_dropout': 0.0,
  'bos_token_id': 1, 'eos_token_id': 2, 'head_dim': 4, 'hidden_act': 'silu', 'hidden_size': 24,
  'initializer_range': 0.02, 'intermediate_size': 20, 'max_position_embeddings': 256,
  'mlp_bias': False, 'model_type': 'llama', 'num_attention_heads': 6, 'num_hidden_layers': 3,
  'num_key_value_heads': 2, 'pad_token_id': None, 'pretraining_tp': 1, 'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 4.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
    'original_max_position_embeddings': 150, 'rope_type': 'llama3',
  },
  'rope_theta': 100.0, 'tie_word_embeddings': False, 'torch_dtype': 'float32',
  'transformers_version': '4.57.1', 'use_cache': True, 'vocab_size': 37,
}  # fmt: skip
ROPE = LLAMA['rope_scaling']


@pytest.fixture
def directory(tmp_path, tiny_decoder, decoder_params):
  """Weights with their configuration."""
  head = {'kernel': np.ones((24, 37), np.float32)}
  save_llama(tmp_path / 'model.safetensors', tiny_decoder, decoder_params, head)
  (tmp_path / 'config.json').write_text(json.dumps(LLAMA))
  return tmp_path


def changed(directory, change):
  """Writes another configuration; ABSENT entries are left out."""
  entries = {key: value for key, value in {**LLAMA, **change}.items() if value is not ABSENT}
  (directory / 'config.json').write_text(json.dumps(entries))
  return directory


ABSENT = object()


def test_a_llama_gives_the_arguments_of_its_decoder(directory, decoder_sizes):
  found = read_llama_config(directory)
  assert {**found, 'length': 16, 'pad': 36} == {**decoder_sizes, 'eps': 1e-5, 'rope_low': 1.0,
                                                'rope_high': 4.0}  # fmt: skip
  assert (found['length'], found['pad']) == (256, -1)
  model = decoder(**found)
  assert load_llama(directory / 'model.safetensors', model).head['kernel'].shape == (24, 37)


def test_versions_keep_the_rotary_positions_in_other_places(directory):
  want = read_llama_config(directory)
  new = {'rope_parameters': {**ROPE, 'rope_theta': 100.0}, 'rope_scaling': ABSENT,
         'rope_theta': ABSENT}  # fmt: skip
  assert read_llama_config(changed(directory, new)) == want
  older = {'rope_scaling': {**ROPE, 'type': 'llama3', 'rope_type': ABSENT}}
  older['rope_scaling'].pop('rope_type')
  assert read_llama_config(changed(directory, older)) == want
  plain = read_llama_config(changed(directory, {'rope_scaling': None, 'rope_theta': ABSENT}))
  assert (plain['rope_theta'], plain['rope_factor']) == (10_000.0, 1.0)


def test_a_window_bounds_the_length(directory):
  mistral = {'model_type': 'mistral', 'architectures': ['MistralForCausalLM']}
  length = lambda change: read_llama_config(changed(directory, {**mistral, **change}))['length']
  assert length({'sliding_window': 12}) == 12
  assert length({'sliding_window': None}) == 256
  assert length({'max_position_embeddings': 8192}) == 4096  # Mistral's own default.
  changed(directory, {**mistral, 'sliding_window': 12})
  small = decoder(**read_llama_config(directory))
  load_llama(directory / 'model.safetensors', small)
  with pytest.raises(ValueError, match='sliding_window 12 changes texts above 12 tokens'):
    load_llama(
      directory / 'model.safetensors', decoder(**{**read_llama_config(directory), 'length': 13})
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'gemma'}, "expected a model_type of llama or mistral, got 'gemma'"),
    ({'model_type': 'qwen2'}, "got 'qwen2'"),
    ({'model_type': ['llama']}, r"got \['llama'\]"),
    ({'model_type': ABSENT}, 'got None'),
    ({'hidden_act': 'gelu_pytorch_tanh'}, "hidden_act='gelu_pytorch_tanh' is not supported"),
    ({'attention_bias': True}, 'attention_bias=True is not supported'),
    ({'attention_bias': 0}, 'attention_bias=0 is not supported'),
    ({'mlp_bias': True}, 'mlp_bias=True'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    ({'use_sliding_window': True}, 'use_sliding_window=True'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config='),
    ({'auto_map': {'AutoModel': 'mine.Mine'}}, 'auto_map='),
    ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping may change what the model'),
    ({'use_bidirectional_attention': True}, 'use_bidirectional_attention may change'),
    ({'architectures': ['LlamaBidirectionalModel']}, 'others may use the weights in another way'),
    ({'architectures': 'LlamaModel'}, 'expected architectures such as'),
    ({'architectures': {}}, 'expected architectures such as'),
    ({'architectures': False}, 'expected architectures such as'),
    ({'head_dim': 8}, 'expected a head_dim of hidden_size / num_attention_heads, got 8'),
    ({'head_dim': '4'}, "got '4'"),
    ({'layer_types': ['full_attention', 'sliding_attention', 'full_attention']}, 'layer_types'),
    ({'sliding_window': 0}, 'for sliding_window, got 0'),
    ({'rms_norm_eps': ABSENT}, 'expected a positive number for rms_norm_eps, got None'),
    ({'rms_norm_eps': float('nan')}, 'for rms_norm_eps, got nan'),
    ({'hidden_size': '24'}, "for hidden_size, got '24'"),
    ({'vocab_size': ABSENT}, 'for vocab_size, got None'),
    ({'num_hidden_layers': 10**9}, 'for num_hidden_layers'),
    ({'pad_token_id': 1.0}, 'for pad_token_id, got 1.0'),
    ({'tie_word_embeddings': 'no'}, "for tie_word_embeddings, got 'no'"),
    ({'rope_theta': -1}, 'for rope_theta, got -1'),
    ({'rope_scaling': [2]}, r'expected an object for the rotary positions, got \[2\]'),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}}, 'of kind default or llama3'),
    ({'rope_scaling': {'type': 'dynamic', 'rope_type': 'llama3'}}, 'of kind default or llama3'),
    ({'rope_scaling': {**ROPE, 'attention_factor': 2.0}}, r"missing: \['attention_factor'\]"),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 2.0}}, "missing: .*'low_freq_factor'"),
    ({'rope_scaling': {**ROPE, 'factor': 0}}, 'expected a positive number for factor, got 0'),
    ({'rope_scaling': {**ROPE, 'rope_theta': 7.0}}, 'two values of rope_theta'),
    ({'rope_parameters': ROPE}, 'has both rope_parameters and rope_scaling'),
  ],
)
def test_what_makes_it_another_function_is_refused_by_name(
  directory, tiny_decoder, change, message
):
  changed(directory, change)
  with pytest.raises(ValueError, match=message) as info:
    read_llama_config(directory)
  assert str(directory / 'config.json') in str(info.value)
  with pytest.raises(ValueError, match=message):
    load_llama(directory / 'model.safetensors', tiny_decoder)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'rope_theta': 500.0}, 'says rope_theta 500.0, decoder has 100.0'),
    ({'rope_scaling': {**ROPE, 'factor': 8.0}}, 'says rope_factor 8.0, decoder has 4.0'),
    ({'rms_norm_eps': 1e-6}, 'says eps 1e-06, decoder has 1e-05'),
    ({'num_key_value_heads': 3}, 'says kv_heads 3, decoder has 2'),
    ({'tie_word_embeddings': True}, 'but the head differs from the embedding'),
  ],
)
def test_a_decoder_that_the_configuration_contradicts_is_refused(
  directory, tiny_decoder, change, message
):
  with pytest.raises(ValueError, match=message):
    load_llama(changed(directory, change) / 'model.safetensors', tiny_decoder)


def test_weights_without_the_head_that_is_said_are_refused(directory, tiny_decoder, decoder_params):
  save_llama(directory / 'model.safetensors', tiny_decoder, decoder_params)
  with pytest.raises(ValueError, match='but the weights have no head'):
    load_llama(directory / 'model.safetensors', tiny_decoder)
  for change in ({'tie_word_embeddings': True}, {'architectures': ['LlamaModel']}):
    load_llama(changed(directory, change) / 'model.safetensors', tiny_decoder)


def test_the_configuration_of_a_run_is_none_of_a_model(directory, tiny_decoder):
  (directory / 'config.json').write_text('{"identity": {}, "method": {}, "training": {}}')
  load_llama(directory / 'model.safetensors', tiny_decoder)
