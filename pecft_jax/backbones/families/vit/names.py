"""timm's vision-transformer checkpoints in and out, as safetensors."""

import hashlib
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.stacks import stack_blocks, unstack_blocks
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.typing import Backbone, Params

# Ours -> timm's. Linear kernels are transposed, the patch kernel is a convolution there, and the
# rows of q, k and v follow one another where we stack them.
_NAMES = (
  (r'^cls$', 'cls_token'),
  (r'^pos$', 'pos_embed'),
  (r'^patch/', 'patch_embed.proj/'),
  (r'^block_(\d+)/', r'blocks.\1/'),
  (r'/ln(\d)/', r'/norm\1/'),
  (r'/out/', '/proj/'),
  (r'kernel$', 'weight'),
  (r'scale$', 'weight'),
)


class Checkpoint(NamedTuple):
  """Weights read from a file."""

  params: Params  # Of the backbone.
  head: Params | None  # {'kernel' [D, C], 'bias' [C]} of the classifier in the file, if any.
  sha256: str  # Of the file.


def timm_name(path: str) -> str:
  """timm's name of one of our leaves: `block_3/ln1/scale` -> `blocks.3.norm1.weight`."""
  for pattern, name in _NAMES:
    path = re.sub(pattern, name, path)
  return path.replace('/', '.')


def _out(path: str, array: Any, patch: int, channels: int) -> np.ndarray:
  array = np.asarray(array)
  if path == 'patch/kernel':
    return array.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)
  array = array.swapaxes(-1, -2) if path.endswith('kernel') else array
  return array.reshape(-1, *array.shape[2:]) if '/qkv/' in path else array


def _in(path: str, array: np.ndarray) -> np.ndarray:
  if path == 'patch/kernel':
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
  if '/qkv/' in path and len(array) % 3 == 0:
    array = array.reshape(3, -1, *array.shape[1:])
  return array.swapaxes(-1, -2) if path.endswith('kernel') else array


def _patch(params: Mapping[str, Any], channels: int) -> int:
  return round((params['patch']['kernel'].shape[0] / channels) ** 0.5)


def _fused(params: Params) -> Params:
  """A loop-layout tree with q, k, v joined, as timm keeps them."""

  def block(tree: Params) -> Params:
    attn = tree['attn']
    if 'qkv' in attn:
      return tree
    joined = jax.tree.map(lambda *parts: jnp.stack(parts), *(attn[n] for n in 'qkv'))
    return {**tree, 'attn': {'qkv': joined, 'out': attn['out']}}

  return {k: block(v) if k.startswith('block_') else v for k, v in params.items()}


def _split(params: Params) -> Params:
  def block(tree: Params) -> Params:
    qkv = tree['attn']['qkv']
    parts = {n: jax.tree.map(lambda a, i=i: a[i], qkv) for i, n in enumerate('qkv')}
    return {**tree, 'attn': {**parts, 'out': tree['attn']['out']}}

  return {k: block(v) if k.startswith('block_') else v for k, v in params.items()}


def save_timm(
  path: str | pathlib.Path, backbone: Backbone, params: Params, head: Params | None = None
) -> str:
  """Writes a ViT's parameters under timm's names, and returns the file's sha256.

  Args:
    path: of the safetensors file.
    backbone: whose parameters these are.
    params: loop or stacked, fused or split.
    head: {'kernel' [D, C], 'bias' [C]}, or None.
  """
  if 'blocks' in params:
    params = unstack_blocks(params, backbone.depth)
  params = _fused(params)
  channels = backbone.inputs.shape[-1]
  patch = _patch(params, channels)
  tensors = {timm_name(n): _out(n, a, patch, channels) for n, a in named_leaves(params)}
  if head is not None:
    tensors['head.weight'] = np.asarray(head['kernel']).T
    tensors['head.bias'] = np.asarray(head['bias'])
  from safetensors.numpy import save_file

  save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, str(path))
  return sha256_of(path)


def load_timm(path: str | pathlib.Path, backbone: Backbone) -> Checkpoint:
  """Reads a ViT checkpoint in timm's naming into a backbone's layout.

  Raises:
    ValueError: if there is no such file, it is truncated or no safetensors
      file, lacks or has tensors that the backbone has not, or one has another
      shape or dtype.
  """
  path = pathlib.Path(path)
  tensors = read_tensors(path)
  head_names = ('head.weight', 'head.bias')
  extra = {name: tensors.pop(name) for name in head_names if name in tensors}
  want = jax.eval_shape(backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
  stacked = 'blocks' in want
  if stacked:
    want = jax.eval_shape(lambda p: unstack_blocks(p, backbone.depth), want)
  split = 'q' in want['block_0']['attn']
  leaves = named_leaves(jax.eval_shape(_fused, want) if split else want)
  params = filled(path, backbone.name, leaves, tensors, timm_name, _in, ('float32',))
  if split:
    params = _split(params)
  if stacked:
    params = stack_blocks(params, backbone.depth)
  head = None
  if len(extra) == len(head_names):
    head = {'kernel': extra['head.weight'].T, 'bias': extra['head.bias']}
  return Checkpoint(jax.tree.map(jnp.asarray, params), head, sha256_of(path))


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a safetensors file. Raises ValueError if it is not there or not whole."""
  if not path.is_file():
    raise ValueError(f'no weights file at {path}')
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  try:
    return load_file(str(path))
  except (SafetensorError, OSError, ValueError) as error:
    raise ValueError(f'{path} is not a readable safetensors file (truncated?): {error}') from error


def filled(
  path: pathlib.Path,
  model: str,
  leaves: Sequence[tuple[str, Any]],
  tensors: Mapping[str, np.ndarray],
  name_of: Callable[[str], str],
  convert: Callable[[str, np.ndarray], np.ndarray],
  dtypes: Collection[str],
) -> Params:
  """A tree of our names from tensors of theirs.

  Args:
    path: of the file, for messages.
    model: name of the backbone, for messages.
    leaves: our names, with the shapes expected.
    tensors: by their names.
    name_of: theirs of ours.
    convert: `(our name, their array) -> our array`.
    dtypes: that are allowed.

  Raises:
    ValueError: where the tensors are not just those expected, or one has
      another shape or dtype.
  """
  names = {ours: name_of(ours) for ours, _ in leaves}
  missing = sorted(set(names.values()) - set(tensors))
  unused = sorted(set(tensors) - set(names.values()))
  if missing or unused:
    raise ValueError(
      f'{path} does not hold the weights of {model}: '
      f'missing {shortened(missing)}, not expected {shortened(unused)}'
    )
  params: Params = {}
  for ours, leaf in leaves:
    array = tensors[names[ours]]
    if str(array.dtype) not in dtypes:
      expected = ' or '.join(dtypes)
      raise ValueError(f'{path}: {names[ours]} has dtype {array.dtype}, expected {expected}')
    array = convert(ours, array) if array.ndim else array
    if array.shape != leaf.shape:
      raise ValueError(
        f'{path}: {names[ours]} gives shape {array.shape} for {ours}, {model} expects {leaf.shape}'
      )
    _put(params, ours.split('/'), np.ascontiguousarray(array))
  return params


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
  for key in keys[:-1]:
    tree = tree.setdefault(key, {})
  tree[keys[-1]] = value


def sha256_of(path: str | pathlib.Path) -> str:
  """Hex digest of a file."""
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while chunk := file.read(1 << 20):
      digest.update(chunk)
  return digest.hexdigest()
