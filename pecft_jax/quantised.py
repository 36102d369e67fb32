"""Frozen matrices in fewer bits, as pytrees that are made dense where they are used.

Neither kind is trained: gradients go through the dense matrix to what is trained beside it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array, Params

# Normal float of 4 bits: quantiles of the normal distribution, with an exact zero (Dettmers et al.,
# 2023, arXiv:2305.14314, appendix E).
NF4 = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
)  # fmt: skip
_BLOCK, _BLOCKS = 64, 256  # Numbers that share a scale, and scales that share a step.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Int8:
  """A matrix of 8 bits, with a scale for each of its columns."""

  codes: Array  # int8 [..., d_in, d_out]
  scale: Array  # float32 [..., 1, d_out]

  def dense(self) -> Array:
    """The matrix in float32: [..., d_in, d_out]."""
    return self.codes * self.scale

  def __getitem__(self, at: Any) -> 'Int8':
    """The matrices at an index of the leading axes."""
    return jax.tree.map(lambda leaf: leaf[at], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Nf4:
  """A matrix of 4 bits, in blocks of 64 numbers whose scales have 8 bits.

  Scales are stored as differences from their mean, in steps that 256 of them share.
  """

  codes: Array  # uint8 [..., n / 2], the first of two numbers in the higher bits.
  scales: Array  # int8 [..., n / 64], up to a multiple of 256.
  steps: Array  # float32 [..., scales / 256]
  mean: Array  # float32 [..., 1], of the scales.
  size: tuple[int, int] = dataclasses.field(metadata={'static': True})  # d_in, d_out

  def dense(self) -> Array:
    """The matrix in float32: [..., d_in, d_out]."""
    lead = self.codes.shape[:-1]
    pairs = jnp.stack([self.codes >> 4, self.codes & 15], -1).reshape(*lead, -1, _BLOCK)
    scales = self.scales.reshape(*lead, -1, _BLOCKS) * self.steps[..., None]
    scales = scales.reshape(*lead, -1)[..., : pairs.shape[-2]] + self.mean
    values = jnp.asarray(NF4).at[pairs].get(mode='promise_in_bounds')
    flat = (values * scales[..., None]).reshape(*lead, -1)
    return flat[..., : self.size[0] * self.size[1]].reshape(*lead, *self.size)

  def __getitem__(self, at: Any) -> 'Nf4':
    """The matrices at an index of the leading axes."""
    return jax.tree.map(lambda leaf: leaf[at], self)


def is_quantised(leaf: Any) -> bool:
  """Whether a node of a tree is a matrix in fewer bits."""
  return isinstance(leaf, Int8 | Nf4)


def dense(leaf: Any) -> Any:
  """A matrix as an array: in float32 if it is quantised, else as it is."""
  return leaf.dense() if is_quantised(leaf) else leaf


def dequantised(params: Params, dtype: Any) -> Params:
  """A tree with all quantised matrices as arrays of a dtype, which may be merged into.

  >>> w = jnp.array([[1.0, -2.0], [0.5, 2.0]])
  >>> dequantised({'kernel': int8(w)}, jnp.float32)['kernel'].round(2).tolist()
  [[1.0, -2.0], [0.5, 2.0]]

  Args:
    params: of a model.
    dtype: of the matrices.
  """
  one = lambda leaf: leaf.dense().astype(dtype) if is_quantised(leaf) else leaf
  return jax.tree.map(one, params, is_leaf=is_quantised)


def int8(w: Array) -> Int8:
  """The nearest matrix of 8 bits, from -127 to 127 times a scale for each column.

  Args:
    w: [..., d_in, d_out]
  """
  w = jnp.asarray(w, jnp.float32)
  scale = jnp.abs(w).max(-2, keepdims=True) / 127
  codes = jnp.round(w / jnp.where(scale > 0, scale, 1))
  return Int8(codes.astype(jnp.int8), scale)


def nf4(w: Array) -> Nf4:
  """The nearest matrix of normal floats of 4 bits, with double quantisation.

  Dettmers et al., 2023, arXiv:2305.14314; scales are integers of 8 bits, not floats.

  Args:
    w: [..., d_in, d_out]
  """
  *lead, rows, columns = w.shape
  flat = jnp.asarray(w, jnp.float32).reshape(*lead, rows * columns)
  blocks = _padded(flat, _BLOCK).reshape(*lead, -1, _BLOCK)
  largest = jnp.abs(blocks).max(-1)
  mean = largest.mean(-1, keepdims=True)
  groups = _padded(largest - mean, _BLOCKS).reshape(*lead, -1, _BLOCKS)
  steps = jnp.abs(groups).max(-1) / 127
  scales = jnp.round(groups / jnp.where(steps > 0, steps, 1)[..., None])
  known = (scales * steps[..., None]).reshape(*lead, -1)[..., : blocks.shape[-2]] + mean
  table = jnp.asarray(NF4)
  share = blocks / jnp.where(known > 0, known, 1)[..., None]
  codes = jnp.searchsorted((table[1:] + table[:-1]) / 2, share).astype(jnp.uint8)
  codes = codes.reshape(*lead, -1, 2)
  return Nf4(
    codes[..., 0] << 4 | codes[..., 1],
    scales.reshape(*lead, -1).astype(jnp.int8),
    steps,
    mean,
    (rows, columns),
  )


def bf16(w: Array) -> Array:
  """The nearest matrix of bfloat16."""
  return jnp.asarray(w, jnp.bfloat16)


FORMS: dict[str, Callable[[Array], Any]] = {'bf16': bf16, 'int8': int8, 'nf4': nf4}


def _padded(array: Array, multiple: int) -> Array:
  """An array [..., n] with zeros up to a multiple."""
  missing = -array.shape[-1] % multiple
  return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
