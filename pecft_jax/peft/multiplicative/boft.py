"""BOFT: rotations of a layer's inputs as a product of sparse factors
(Liu et al., 2023, arXiv:2311.06243).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.multiplicative.oft import cayley, turned
from pecft_jax.peft.sites import per_site
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class BoftDelta(NamedTuple):
  """y = (x R W) * s + b, with R a product of m orthogonal factors.

  In files of Hugging Face's peft `boft_R`, as it is, and `boft_s` without its axis of 1.
  """

  AXES = {'r': ('in', None, None), 's': ('out',)}

  r: Array  # [m, d_in / n, n, n], zeros at init; the factors are of its skew part.
  s: Array  # [d_out], ones at init.


@about(
  'transform',
  'multiplicative',
  Paper('Parameter-efficient orthogonal finetuning via butterfly factorization', '2311.06243'),
  tiny=lambda: boft(block=2, factors=2),
)
@recorded
def boft(pattern: str = r'attn/(q|v)$', block: int = 4, factors: int = 1) -> PeftTransform:
  """Rotates the inputs of matching linear sites by a butterfly, and scales the outputs.

  R = T_(m-1) ... T_1 T_0. Each factor rotates sets of n inputs by C = (I - A) (I + A)^-1, where
  A = (M - M^T) / 2 and M is the n x n numbers of a set. The sets of T_0 are blocks of neighbours.
  T_i works on groups of 2^i n inputs: a set is the k-th run of n / 2 inputs of a group's first half
  and the k-th of its second half, so m factors mix 2^(m-1) n inputs. A site has m d_in n + d_out
  numbers. Hugging Face's peft (`BOFT`) has n = 4 and m = 1; without its CUDA extension m is 1
  whatever it is asked for.

  In a chain `boft` goes before parts that change the bias: only then is merging it exact.

  Args:
    pattern: regex searched in the site path.
    block: n, the size of a block, at least 2; even for several factors.
    factors: m, at least 1; 2^(m-1) n must divide d_in.

  Raises:
    ValueError: for a block below 2, one that is odd with several factors, or fewer than one
      factor; at init, for sizes that do not divide d_in.

  >>> import jax
  >>> from pecft_jax.peft import boft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = boft(r'attn/q$', block=4, factors=3)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].r.shape
  (3, 24, 4, 4)
  """
  at_least(2, block=block)
  at_least(1, factors=factors)
  if factors > 1 and block % 2:
    raise ValueError(f'several factors need a block of even size, got block={block}')

  def init_one(key, spec, weights):
    del key  # Deterministic.
    d_in, d_out = weights.main.shape
    if d_in % (block << (factors - 1)):
      raise ValueError(
        f'{spec.site.path}: expected 2^(factors - 1) x block to divide its {d_in} inputs, got '
        f'block={block}, factors={factors}'
      )
    return BoftDelta(jnp.zeros((factors, d_in // block, block, block)), jnp.ones(d_out))

  def rotated(delta, x):
    turns = cayley((delta.r - delta.r.swapaxes(-1, -2)) / 2)
    for i in range(factors - 1, -1, -1):
      x = _sorted(turned(_unsorted(x, i, block), turns[i]), i, block)
    return x

  def run(delta, next_fn, x, w, b):
    y = next_fn(rotated(delta, x), w, b)
    product = y if b is None else y - b.astype(y.dtype)  # The bias is not scaled.
    # (s - 1) as a separate term: exactly the frozen layer at init.
    return y + (delta.s - 1).astype(y.dtype) * product

  def update(delta, w):
    # R^T = R with its factors in the opposite order and turned back: x R as columns of w.
    turns = cayley((delta.r - delta.r.swapaxes(-1, -2)) / 2).swapaxes(-1, -2)
    columns = w.T
    for i in range(factors):
      columns = _sorted(turned(_unsorted(columns, i, block), turns[i], 'highest'), i, block)
    return columns.T * delta.s - w

  return per_site('linear', pattern, init_one, run, update=update)


def _sorted(x: Array, i: int, block: int) -> Array:
  """In each group of 2^i blocks, the even-numbered runs of half a block, then the odd ones."""
  runs = x.reshape(*x.shape[:-1], -1, 1 << i, 2, block // 2)
  return runs.swapaxes(-2, -3).reshape(x.shape) if i else x


def _unsorted(x: Array, i: int, block: int) -> Array:
  """The inverse of `_sorted`."""
  runs = x.reshape(*x.shape[:-1], -1, 2, 1 << i, block // 2)
  return runs.swapaxes(-2, -3).reshape(x.shape) if i else x
