import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pecft_jax.backbones import decoder, load_llama, save_llama


@pytest.fixture
def file(tmp_path, tiny_decoder, decoder_params):
  head = {'kernel': np.ones((24, 37), np.float32)}
  save_llama(tmp_path / 'model.safetensors', tiny_decoder, decoder_params, head)
  return tmp_path / 'model.safetensors'


def test_names_and_shapes_on_disk_are_those_of_transformers(file):
  shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
  assert len(shapes) == 3 * 9 + 3
  assert shapes['model.embed_tokens.weight'] == (37, 24)
  assert shapes['model.layers.2.self_attn.q_proj.weight'] == (24, 24)
  assert shapes['model.layers.0.self_attn.k_proj.weight'] == (8, 24)
  assert shapes['model.layers.0.self_attn.o_proj.weight'] == (24, 24)
  assert shapes['model.layers.1.mlp.gate_proj.weight'] == (20, 24)
  assert shapes['model.layers.1.mlp.down_proj.weight'] == (24, 20)
  assert shapes['model.layers.1.input_layernorm.weight'] == (24,)
  assert shapes['model.layers.1.post_attention_layernorm.weight'] == (24,)
  assert shapes['model.norm.weight'] == (24,)
  assert shapes['lm_head.weight'] == (37, 24)


@pytest.mark.parametrize('scan', [False, True])
def test_both_layouts_read_the_same_file_and_write_it_again(
  file, tmp_path, decoder_sizes, tiny_decoder, decoder_params, texts, scan
):
  model = decoder(**decoder_sizes, scan=scan)
  checkpoint = load_llama(file, model)
  want = tiny_decoder.apply(decoder_params, texts).pooled
  np.testing.assert_allclose(model.apply(checkpoint.params, texts).pooled, want, atol=1e-5)
  digest = save_llama(tmp_path / 'again.safetensors', model, checkpoint.params, checkpoint.head)
  assert digest == checkpoint.sha256


def test_a_tied_head_is_not_in_the_file(tmp_path, tiny_decoder, decoder_params):
  save_llama(tmp_path / 'tied.safetensors', tiny_decoder, decoder_params)
  assert 'lm_head.weight' not in load_file(tmp_path / 'tied.safetensors')
  assert load_llama(tmp_path / 'tied.safetensors', tiny_decoder).head is None


def test_the_body_saved_by_itself_and_old_buffers_are_read(
  file, tmp_path, tiny_decoder, decoder_params
):
  tensors = {name.removeprefix('model.'): tensor for name, tensor in load_file(file).items()}
  tensors['layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(2, np.float32)
  save_file(tensors, tmp_path / 'body.safetensors')
  got = load_llama(tmp_path / 'body.safetensors', tiny_decoder)
  chex.assert_trees_all_equal(got.params, decoder_params)


def test_weights_stay_in_the_type_they_are_stored_in(tmp_path, tiny_decoder, decoder_params):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), decoder_params)
  save_llama(tmp_path / 'half.safetensors', tiny_decoder, half)
  got = load_llama(tmp_path / 'half.safetensors', tiny_decoder).params
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
  chex.assert_trees_all_equal(got, half)


def test_an_index_of_several_files_is_read(file, tmp_path, tiny_decoder, decoder_params):
  tensors = load_file(file)
  parts = {name: 'a.safetensors' if 'layers.1' in name else 'b.safetensors' for name in tensors}
  for part in set(parts.values()):
    save_file({n: t for n, t in tensors.items() if parts[n] == part}, tmp_path / part)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': parts}))
  got = load_llama(index, tiny_decoder)
  chex.assert_trees_all_equal(got.params, decoder_params)
  assert got.head is not None and len(got.sha256) == 64
  (tmp_path / 'a.safetensors').unlink()
  with pytest.raises(ValueError, match=r'no weights file at .*a\.safetensors'):
    load_llama(index, tiny_decoder)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({}, 'is not an index of safetensors files: expected an object for weight_map, got None'),
    ({'weight_map': ['a']}, r'for weight_map, got \[.a.\]'),
    ({'weight_map': {'a': 3}}, 'expected the name of a file beside it for a, got 3'),
    ({'weight_map': {'a': '../model.safetensors'}}, "for a, got '../model.safetensors'"),
    ({'weight_map': {'a': 'model.safetensors'}}, r"holds \['a'\], which it does not"),
  ],
)  # fmt: skip
def test_an_index_of_something_else_is_refused(file, tmp_path, tiny_decoder, content, message):
  (tmp_path / 'x.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message):
    load_llama(tmp_path / 'x.json', tiny_decoder)


def test_a_tensor_that_is_there_twice_is_refused(file, tmp_path, tiny_decoder):
  name = 'model.norm.weight'
  tensors = load_file(file)
  save_file({**tensors, name.removeprefix('model.'): tensors[name]}, file)
  with pytest.raises(ValueError, match=r'holds model\.norm\.weight twice'):
    load_llama(file, tiny_decoder)


@pytest.mark.parametrize(
  ('head', 'message'),
  [
    (np.ones((37, 23), np.float32), r'has shape \[37, 23\], expected \[classes, width\]'),
    (np.ones(24, np.float32), r'lm_head.weight has shape \[24\]'),
    (np.ones((37, 24), np.int32), 'lm_head.weight has dtype int32'),
    (np.full((37, 24), np.inf, np.float32), r'lm_head.weight is not finite: inf at \[0, 0\]'),
  ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_refused(file, tiny_decoder, head, message):
  save_file({**load_file(file), 'lm_head.weight': head}, file)
  with pytest.raises(ValueError, match=message):
    load_llama(file, tiny_decoder)


def test_another_architecture_is_refused_by_name(file, decoder_sizes):
  with pytest.raises(ValueError, match=r"missing \['model.layers.3"):
    load_llama(file, decoder(**{**decoder_sizes, 'depth': 4}))
  with pytest.raises(ValueError, match=r'k_proj.weight gives shape \(24, 8\) .* \(24, 12\)'):
    load_llama(file, decoder(**{**decoder_sizes, 'kv_heads': 3}))


def test_integers_are_refused(file, tiny_decoder):
  save_file({k: v.astype(np.int8) for k, v in load_file(file).items()}, file)
  with pytest.raises(ValueError, match='has dtype int8, expected float32 or bfloat16 or float16'):
    load_llama(file, tiny_decoder)


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_weights_that_are_no_numbers_are_named(file, tiny_decoder, value):
  tensors = load_file(file)
  tensors['model.layers.1.mlp.up_proj.weight'][3, 2] = value
  save_file(tensors, file)
  message = rf'model.layers.1.mlp.up_proj.weight is not finite: {value} at \[3, 2\]'
  with pytest.raises(ValueError, match=message):
    load_llama(file, tiny_decoder)


@pytest.mark.parametrize('dtype', ['F8_E4M3', 'F8_E5M2', 'F64', 'BOOL'])
def test_other_types_of_weights_are_named(tmp_path, tiny_decoder, dtype):
  header = {'model.norm.weight': {'dtype': dtype, 'shape': [0], 'data_offsets': [0, 0]}}
  raw = json.dumps(header).encode()
  path = tmp_path / 'w.safetensors'
  path.write_bytes(len(raw).to_bytes(8, 'little') + raw)
  with pytest.raises(ValueError, match=dtype if dtype[1] == '8' else 'w.safetensors') as info:
    load_llama(path, tiny_decoder)
  assert str(path) in str(info.value)
