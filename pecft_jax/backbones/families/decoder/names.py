"""Llama checkpoints in Hugging Face's naming in and out, as safetensors."""

import hashlib
import pathlib
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.checkpoint import (
  Checkpoint,
  as_stored,
  classifier,
  expected,
  filled,
  read_tensors,
  sha256_of,
  unstacked,
)
from pecft_jax.backbones.core.naming import Module, Naming
from pecft_jax.backbones.families.decoder.config import check_llama_config
from pecft_jax.files import read_object
from pecft_jax.local import local_path
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.typing import Backbone, Params

# Ours -> theirs. Linear kernels are transposed; the embedding is not.
_NAMES = (
  (r'^block_(\d+)/', r'layers.\1/'),
  (r'/attn/out/', '/self_attn/o_proj/'),
  (r'/attn/(q|k|v)/', r'/self_attn/\1_proj/'),
  (r'/mlp/(gate|up|down)/', r'/mlp/\1_proj/'),
  (r'/ln1/', '/input_layernorm/'),
  (r'/ln2/', '/post_attention_layernorm/'),
  (r'^embed/', 'embed_tokens/'),
  (r'(kernel|scale|table)$', 'weight'),
)
_BODY = 'model.'
_HEAD = 'lm_head.weight'
_BUFFER = 'rotary_emb.inv_freq'  # In files of old versions; implied by the architecture.
_DTYPES = ('float32', 'bfloat16', 'float16')


def llama_name(path: str) -> str:
  """Hugging Face's name of one of our leaves.

  `block_3/attn/q/kernel` -> `model.layers.3.self_attn.q_proj.weight`.
  """
  for pattern, name in _NAMES:
    path = re.sub(pattern, name, path)
  return _BODY + path.replace('/', '.')


def llama_module(path: str) -> Module:
  """transformers' layer of a site: `block_3/attn/q` is `model.layers.3.self_attn.q_proj`."""
  return Module(llama_name(f'{path}/kernel').removesuffix('.weight'), None)


LLAMA = Naming(llama_module, (), 'score', "transformers' LlamaForSequenceClassification")


def save_llama(
  path: str | pathlib.Path, backbone: Backbone, params: Params, head: Params | None = None
) -> str:
  """Writes a decoder's parameters under Hugging Face's names, and returns the file's sha256.

  Args:
    path: of the safetensors file.
    backbone: whose parameters these are.
    params: loop or stacked.
    head: {'kernel' [D, V]} of the language-model head; None where it is tied to
      the embedding, or there is none.

  Returns:
    The file's sha256, in hex digits.

  >>> import jax
  >>> from pecft_jax.backbones import decoder
  >>> model = decoder(length=4, vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, hidden=8)
  >>> params = jax.jit(model.init)(jax.random.key(0))
  >>> _ = save_llama('llama.safetensors', model, params)
  >>> from safetensors.numpy import load_file
  >>> load_file('llama.safetensors')['model.layers.0.self_attn.q_proj.weight'].shape
  (8, 8)
  """
  params = unstacked(backbone, params)
  tensors = {llama_name(name): _flipped(name, np.asarray(a)) for name, a in named_leaves(params)}
  if head is not None:
    tensors[_HEAD] = np.asarray(head['kernel']).T
  tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
  # Readers of the format check in this entry which library wrote the file.
  from safetensors.numpy import save_file

  save_file(tensors, str(path), metadata={'format': 'pt'})
  return sha256_of(path)


def load_llama(path: str | pathlib.Path, backbone: Backbone) -> Checkpoint:
  """Reads a Llama checkpoint in Hugging Face's naming into a decoder's layout.

  Weights stay in the type they are stored in: float32, bfloat16 or float16. A
  `config.json` beside the file must be that of the backbone: the weights of other models, such as
  Gemma's, have the same names but belong to another function.

  Args:
    path: a safetensors file, or the index (`model.safetensors.index.json`) of
      several beside it.
    backbone: a `decoder`.

  Returns:
    The checkpoint; its head is {'kernel' [D, V]}, or None where the file has
    none: then the head is the embedding's transpose, or the model has none. For several files, the
      sha256 is that of the list of their digests, one per line, in order.

  Raises:
    ValueError: if a file is missing or not whole, the tensors are not those of
      the backbone, or one has another shape or dtype, or is not finite;
      or if by a `config.json` beside it they belong to another function.

  >>> import jax
  >>> from pecft_jax.backbones import decoder
  >>> model = decoder(length=4, vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, hidden=8)
  >>> params = jax.jit(model.init)(jax.random.key(0))
  >>> sha256 = save_llama('llama.safetensors', model, params)
  >>> checkpoint = load_llama('llama.safetensors', model)
  >>> checkpoint.sha256 == sha256, checkpoint.head
  (True, None)
  """
  path = local_path(path)
  files = _files(path)
  tensors = _joined(path, files)
  head = {_HEAD: tensors.pop(_HEAD)} if _HEAD in tensors else {}
  table = tensors.get(llama_name('embed/table'))
  leaves = named_leaves(expected(backbone))
  params = filled(path, backbone.name, leaves, tensors, llama_name, _flipped, _DTYPES)
  check_llama_config(path, backbone, head.get(_HEAD), table)
  head = classifier(path, head, (_HEAD,), backbone.width, _DTYPES)
  params = as_stored(backbone, params)
  return Checkpoint(
    jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, head), _digest(list(files))
  )


def _flipped(path: str, array: np.ndarray) -> np.ndarray:
  return array.T if path.endswith('kernel') else array


def _files(path: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
  """The files of a model, each with the names of its tensors; None where these are not listed."""
  if path.suffix != '.json':
    return {path: None}
  weight_map = read_object(path, 'an index of safetensors files').get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(
      f'{path} is not an index of safetensors files: expected an object for weight_map, got '
      f'{weight_map!r:.60}'
    )
  names: dict[str, set[str]] = {}
  for tensor, file in weight_map.items():
    if not isinstance(file, str) or file != pathlib.PurePath(file).name:
      raise ValueError(f'{path}: expected the name of a file beside it for {tensor}, got {file!r}')
    names.setdefault(file, set()).add(tensor)
  return {path.parent / file: names[file] for file in sorted(names)}


def _joined(
  path: pathlib.Path, files: Mapping[pathlib.Path, set[str] | None]
) -> dict[str, np.ndarray]:
  """The tensors of all files, named as in a whole model."""
  found: dict[str, np.ndarray] = {}
  for file, names in files.items():
    tensors = read_tensors(file)
    if names is not None and names != tensors.keys():
      raise ValueError(
        f'{path} says that {file.name} holds {shortened(sorted(names - tensors.keys()))}, which it '
        f'does not, or not {shortened(sorted(tensors.keys() - names))}, which it does'
      )
    for name, tensor in tensors.items():
      # A model saved without its head has no prefix.
      whole = name if name.startswith(_BODY) or name == _HEAD else _BODY + name
      if whole in found:
        raise ValueError(f'{path} holds {whole} twice')
      if not name.endswith(_BUFFER):
        found[whole] = tensor
  return found


def _digest(files: list[pathlib.Path]) -> str:
  digests = [sha256_of(file) for file in files]
  if len(digests) == 1:
    return digests[0]
  return hashlib.sha256('\n'.join(digests).encode()).hexdigest()
