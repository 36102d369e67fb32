"""A tiny model, stored and run in every way that must not matter."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.paths import map_named
from pecft_jax.typing import Array, Backbone

DEPTH = 3
SIZES = dict(image_size=16, patch=8, width=24, depth=DEPTH, heads=2, mlp_ratio=1.5)
NORMAL = dict(mean=(0.0,) * 3, std=(1.0,) * 3)


class Tiny(NamedTuple):
  model: Backbone  # Blocks in a loop, qkv fused.
  params: Any
  stacked: Backbone
  stacked_params: Any
  split: Backbone  # q, k, v each with its own weight.
  split_params: Any
  remat: Backbone
  half: Backbone  # Computes in bfloat16.
  shallow: Backbone  # One block.
  images: Array  # [7, 16, 16, 3]


def shaken(tree: Any, seed: int, size: float = 0.2) -> Any:
  """Adds noise to every leaf, a function of its path: nothing is left at zero or one."""

  def shake(name, leaf):
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=leaf.shape)
    return jnp.asarray(np.asarray(leaf) + size * noise, leaf.dtype)

  return map_named(shake, tree)


def split_qkv(params: Any) -> Any:
  """`qkv` as `q`, `k` and `v`, whether blocks are stacked or not."""
  if not isinstance(params, dict):
    return params
  out = {key: split_qkv(value) for key, value in params.items() if key != 'qkv'}
  for i, name in enumerate('qkv' if 'qkv' in params else ''):
    # Before [3, D, D] stands an axis of layers, where these are stacked.
    layers = (slice(None),) * (params['qkv']['kernel'].ndim - 3)
    out[name] = jax.tree.map(lambda a, at=(*layers, i): a[at], params['qkv'])
  return out
