"""timm's vision-transformer checkpoints in and out, as safetensors."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

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
from pecft_jax.backbones.families.vit.config import check_timm_config
from pecft_jax.local import local_path
from pecft_jax.paths import named_leaves
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
_HEAD = ('head.weight', 'head.bias')
_DTYPES = ('float32', 'bfloat16', 'float16')


def timm_name(path: str) -> str:
  """timm's name of one of our leaves: `block_3/ln1/scale` -> `blocks.3.norm1.weight`."""
  for pattern, name in _NAMES:
    path = re.sub(pattern, name, path)
  return path.replace('/', '.')


def timm_module(path: str) -> Module:
  """timm's layer of a site: `block_3/attn/q` is the first third of `blocks.3.attn.qkv`."""
  name = timm_name(f'{path}/kernel').removesuffix('.weight')
  if found := re.fullmatch(r'(.*\.attn)\.(q|k|v)', name):
    return Module(f'{found[1]}.qkv', 'qkv'.index(found[2]))
  return Module(name, None)


TIMM_VIT = Naming(timm_module, ('patch',), 'head', "timm's VisionTransformer")


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

  Returns:
    The file's sha256, in hex digits.

  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> _ = save_timm('vit.safetensors', model.backbone, model.params)
  >>> from safetensors.numpy import load_file
  >>> load_file('vit.safetensors')['blocks.0.attn.qkv.weight'].shape
  (288, 96)
  """
  params = _fused(unstacked(backbone, params))
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

  Weights of float16 and bfloat16 become float32, exactly.

  A `config.json` beside the file must be that of the backbone: weights with the same names and
  shapes may belong to a model with other heads, another activation or another value range.

  Args:
    path: a safetensors file.
    backbone: a `vit`.

  Returns:
    The checkpoint; its head is {'kernel' [D, C], 'bias' [C]}, or None where the file has none.

  Raises:
    ValueError: if there is no such file, it is truncated or no safetensors
      file, its tensors are not exactly those of the backbone, or one has another
      shape or dtype, or is not finite; or if by a `config.json` beside it they belong to another
      function.

  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> sha256 = save_timm('vit.safetensors', model.backbone, model.params)
  >>> checkpoint = load_timm('vit.safetensors', model.backbone)
  >>> checkpoint.sha256 == sha256, checkpoint.params['pos'].shape
  (True, (1, 17, 96))
  """
  path = local_path(path)
  tensors = read_tensors(path)
  extra = {name: tensors.pop(name) for name in _HEAD if name in tensors}
  want = expected(backbone)
  split = 'q' in want['block_0']['attn']
  leaves = named_leaves(jax.eval_shape(_fused, want) if split else want)
  params = filled(path, backbone.name, leaves, tensors, timm_name, _in, _DTYPES)
  if split:
    params = _split(params)
  params = as_stored(backbone, params)
  check_timm_config(path, backbone)
  head = classifier(path, extra, _HEAD, backbone.width, _DTYPES)
  # Parameters are float32, also of a file that is of half precision to be small.
  as_float32 = lambda array: jnp.asarray(array, jnp.float32)
  return Checkpoint(
    jax.tree.map(as_float32, params),
    jax.tree.map(as_float32, head),
    sha256_of(path),
  )
