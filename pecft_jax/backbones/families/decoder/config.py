"""`config.json` of Hugging Face's transformers: which models are this `decoder`.

The weights of several other models have Llama's names and shapes, but belong to another function.
Every key is in one of three tables: read, accepted with certain values, or without effect on what
the weights compute. Any other key is refused, as it may change the function in a way that this
reader does not know.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pecft_jax.backbones.core.beside import (
  CONFIG,
  check_known,
  check_values,
  configuration_beside,
)
from pecft_jax.backbones.core.sizes import check_positive, check_sizes
from pecft_jax.files import read_object
from pecft_jax.local import local_path
from pecft_jax.text import shortened
from pecft_jax.typing import Backbone

# Mistral's blocks are Llama's; its window is checked below.
MODELS = ('llama', 'mistral')
_WINDOW = {'mistral': 4096}  # Defaults of missing entries.
_SIZES = {
  'vocab_size': 'vocabulary', 'hidden_size': 'width', 'num_hidden_layers': 'depth',
  'num_attention_heads': 'heads', 'num_key_value_heads': 'kv_heads',
  'intermediate_size': 'hidden', 'max_position_embeddings': 'length',
}  # fmt: skip
_READ = {
  *_SIZES, 'model_type', 'architectures', 'head_dim', 'rms_norm_eps', 'pad_token_id', 'rope_theta',
  'rope_scaling', 'rope_parameters', 'sliding_window', 'layer_types', 'tie_word_embeddings',
}  # fmt: skip
_ONLY: Mapping[str, tuple[Any, ...]] = {
  'hidden_act': ('silu', 'swish'),
  'attention_bias': (False, None),
  'mlp_bias': (False, None),
  'use_sliding_window': (False, None),
  'partial_rotary_factor': (1.0, None),
  'rope_interleaved': (False, None),
  'is_encoder_decoder': (False, None),
  'add_cross_attention': (False, None),
  'pruned_heads': ({}, None),
  'quantization_config': (None,),
  'auto_map': (None,),
}
# Of training, of generation, of memory, and where the file comes from.
_HARMLESS = {
  '_attn_implementation', '_attn_implementation_autoset', '_name_or_path', 'attention_dropout',
  'attn_implementation', 'bos_token_id', 'chunk_size_feed_forward', 'dtype', 'eos_token_id',
  'finetuning_task', 'id2label', 'initializer_range', 'is_decoder', 'is_llama_config', 'label2id',
  'max_window_layers', 'output_attentions', 'output_hidden_states', 'pretraining_tp',
  'problem_type', 'return_dict', 'torch_dtype', 'transformers.js_config', 'transformers_version',
  'unsloth_fixed', 'use_bfloat16', 'use_cache',
}  # fmt: skip
# Rotary positions: the known kinds, and the entries of each.
_ROPES = {
  'default': set(),
  'llama3': {'factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'},
}
_HEADED = 'ForCausalLM'
_ARCHITECTURES = re.compile(
  rf'(Llama|Mistral)(Model|{_HEADED}|ForSequenceClassification|ForTokenClassification'
  '|ForQuestionAnswering)'
)


def read_llama_config(path: str | pathlib.Path) -> dict[str, Any]:
  """The arguments of `decoder` for a model of Hugging Face's transformers.

  Args:
    path: of its `config.json`, or the directory that holds it.

  Returns:
    Sizes, `eps`, `pad` (-1 where there is none) and the rotary positions. `length` is the largest
    that the model has positions for, or its sliding window where that is shorter.

  Raises:
    ValueError: if there is no such file, the model is of another kind than `MODELS`, or an entry is
      unknown or has a value that changes the function; names the file and the entry.

  >>> import json, pathlib
  >>> entries = {
  ...   'model_type': 'llama', 'vocab_size': 9, 'hidden_size': 8, 'num_hidden_layers': 1,
  ...   'num_attention_heads': 2, 'intermediate_size': 16, 'max_position_embeddings': 32,
  ...   'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
  ... }
  >>> _ = pathlib.Path('config.json').write_text(json.dumps(entries))
  >>> read_llama_config('config.json')['kv_heads']
  2
  """
  path = local_path(path)
  path = path / CONFIG if path.is_dir() else path
  return _arguments(path, read_object(path, 'the configuration of a model'))


def check_llama_config(path: pathlib.Path, backbone: Backbone, head: Any, table: Any) -> None:
  """Checks a decoder with its weights against the configuration beside them.

  Args:
    path: of the weights; nothing is checked where there is no `config.json` beside them.
    backbone: the decoder.
    head: [V, D] as in the file, or None.
    table: [V, D], the embedding.

  Raises:
    ValueError: if by the configuration the weights belong to another function; names the file
      and the entry.
  """
  entries = configuration_beside(path)
  if entries is None:
    return
  path = path.parent / CONFIG
  said = _arguments(path, entries)
  length, _ = said.pop('length'), said.pop('pad')
  ours = backbone.settings or {}
  if said['rope_factor'] == 1 and ours.get('rope_factor', 1) == 1:
    said = {key: said[key] for key in said if key not in _OF_STRETCHED}
  for key, value in said.items():
    if key in ours and ours[key] != value:
      raise ValueError(f'{path} says {key} {value}, {backbone.name} has {ours[key]}')
  window = entries.get('sliding_window', _WINDOW.get(entries['model_type']))
  if window is not None and backbone.inputs.shape[0] > length:
    raise ValueError(
      f'{path}: its sliding_window {window} changes texts above {length} tokens, {backbone.name} '
      f'has {backbone.inputs.shape[0]}'
    )
  _check_head(path, entries, head, table)


_OF_STRETCHED = ('rope_low', 'rope_high', 'rope_original')


def _listed(entries: Mapping[str, Any], key: str) -> Any:
  """An entry that may be left out, or be null: no names."""
  return [] if entries.get(key) is None else entries[key]


def _check_head(path: pathlib.Path, entries: Mapping[str, Any], head: Any, table: Any) -> None:
  tied, kinds = entries.get('tie_word_embeddings'), _listed(entries, 'architectures')
  if head is not None and tied and not np.array_equal(head, table):
    raise ValueError(f'{path} says tie_word_embeddings, but the head differs from the embedding')
  if head is None and tied is False and any(kind.endswith(_HEADED) for kind in kinds):
    raise ValueError(
      f'{path} says {shortened(kinds)} without tie_word_embeddings, but the weights have no head'
    )


def _arguments(path: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
  kind = entries.get('model_type')
  if kind not in MODELS:
    raise ValueError(
      f'{path}: expected a model_type of {" or ".join(MODELS)}, got {kind!r}: the weights of other '
      'models mean another function, whatever their names'
    )
  check_known(path, entries, {*_READ, *_ONLY, *_HARMLESS})
  check_values(path, entries, _ONLY)
  entries = dict(entries)
  if entries.get('num_key_value_heads') is None:
    entries['num_key_value_heads'] = entries.get('num_attention_heads')
  sizes: dict[str, Any] = {key: entries.get(key) for key in _SIZES}
  check_sizes(str(path), **sizes)
  found = {_SIZES[key]: value for key, value in sizes.items()}
  head = entries.get('head_dim')
  if head is not None and (type(head) is not int or head * found['heads'] != found['width']):
    raise ValueError(
      f'{path}: expected a head_dim of hidden_size / num_attention_heads, got {head!r}'
    )
  tied = entries.get('tie_word_embeddings')
  if not isinstance(tied, bool | None):
    raise ValueError(f'{path}: expected true or false for tie_word_embeddings, got {tied!r}')
  kinds = _listed(entries, 'architectures')
  listed = isinstance(kinds, list) and all(isinstance(each, str) for each in kinds)
  if not listed or not all(_ARCHITECTURES.fullmatch(each) for each in kinds):
    raise ValueError(
      f'{path}: expected architectures such as LlamaForCausalLM, got {kinds!r}: others may use the '
      'weights in another way'
    )
  epsilon = entries.get('rms_norm_eps')
  check_positive(str(path), rms_norm_eps=epsilon)
  return {
    **found,
    'length': _length(path, entries, found['length']),
    'pad': _pad(path, entries.get('pad_token_id')),
    'eps': epsilon,
    **_rope(path, entries),
  }


def _length(path: pathlib.Path, entries: Mapping[str, Any], length: int) -> int:
  """The longest texts that the sliding window does not change."""
  kinds = entries.get('layer_types')
  if kinds is not None and kinds != ['full_attention'] * entries['num_hidden_layers']:
    raise ValueError(f'{path}: expected layer_types of full_attention in each layer, got {kinds!r}')
  window = entries.get('sliding_window', _WINDOW.get(entries['model_type']))
  if window is None:
    return length
  check_sizes(str(path), sliding_window=window)
  return min(length, window)


def _pad(path: pathlib.Path, value: Any) -> int:
  if value is None:
    return -1
  if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
    raise ValueError(f'{path}: expected a token id or null for pad_token_id, got {value!r}')
  return value


def _rope(path: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of the rotary positions, from either of the places where versions keep them."""
  both = [entries.get(key) for key in ('rope_parameters', 'rope_scaling')]
  given = [each for each in both if each is not None]
  if len(given) > 1:
    raise ValueError(f'{path} has both rope_parameters and rope_scaling')
  rope = given[0] if given else {}
  if not isinstance(rope, dict):
    raise ValueError(f'{path}: expected an object for the rotary positions, got {rope!r}')
  # Older files have the kind under `type`; both may be present.
  names = {rope[key] for key in ('rope_type', 'type') if isinstance(rope.get(key), str)}
  (kind,) = names if len(names) == 1 else ('default' if not rope.keys() - {'rope_theta'} else None,)
  if kind not in _ROPES:
    raise ValueError(
      f'{path}: expected rotary positions of kind {" or ".join(_ROPES)}, got {rope!r}'
    )
  if differing := sorted((rope.keys() - {'rope_type', 'type', 'rope_theta'}) ^ _ROPES[kind]):
    raise ValueError(
      f'{path}: expected {sorted(_ROPES[kind])} in rotary positions of kind {kind}, unknown or '
      f'missing: {differing}'
    )
  thetas = {repr(each['rope_theta']) for each in (entries, rope) if 'rope_theta' in each}
  if len(thetas) > 1:
    raise ValueError(f'{path} has two values of rope_theta: {sorted(thetas)}')
  theta = rope.get('rope_theta', entries.get('rope_theta', 10_000.0))
  check_positive(str(path), rope_theta=theta)
  found = {'rope_theta': theta, 'rope_factor': 1.0}
  if kind == 'default':
    return {**found, 'rope_low': 1.0, 'rope_high': 4.0, 'rope_original': 8192}
  low, high = rope['low_freq_factor'], rope['high_freq_factor']
  check_positive(str(path), factor=rope['factor'], low_freq_factor=low, high_freq_factor=high)
  original = rope['original_max_position_embeddings']
  check_sizes(str(path), original_max_position_embeddings=original)
  found['rope_factor'] = rope['factor']
  return {**found, 'rope_low': low, 'rope_high': high, 'rope_original': original}
