"""PiSSA: the principal singular values and vectors are trained (Meng et al., 2024,
arXiv:2404.02948).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.lora import LoraDelta, lora_scale
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import leading_part
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, Key, PeftTransform


class PissaDelta(NamedTuple):
  """y = x W + scale (x A B - x A_0 B_0), with A_0 B_0 the factors at init."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], U sqrt(S / scale) at init.
  b: Array  # [r, d_out], sqrt(S / scale) V^T at init.
  start: Kept  # LoraDelta of both at init: what is taken off the frozen weight.


@about(
  'transform',
  'low-rank',
  Paper(
    'PiSSA: principal singular values and singular vectors adaptation of large language models',
    '2404.02948',
  ),
  tiny=lambda: pissa(rank=2),
)
@recorded
def pissa(
  pattern: str = r'attn/(q|v)$', rank: int = 8, alpha: float | None = None, *, dropout: float = 0.0
) -> PeftTransform:
  """Trains the leading part of each weight's singular value decomposition.

  W = U S V^T becomes (W - A_0 B_0) + A B (eqs. 2 to 4): the function is the
  same at init, and the frozen rest is W without its leading part. Each site stores
  2 r (d_in + d_out) numbers, half of them trained.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: both products are scaled by alpha / r; r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a
      rank above the smaller side of a weight.

  Example:
    >>> import jax
    >>> from pecft_jax.backbones import vit
    >>> model = vit(image_size=4, channels=1, patch=2, width=8, depth=1, heads=2,
    ...             mean=(0.5,), std=(0.5,))
    >>> params = model.init(jax.random.key(0))
    >>> delta = pissa(rank=2).init(jax.random.key(1), model.sites, params)
    >>> delta['block_0/attn/q'].a.shape
    (8, 2)
  """
  scale = part_scale(rank, alpha)
  part = lambda key, path, w: balanced(*leading_part(path, w, rank), scale)
  return trained_part(pattern, part, scale, dropout)


def part_scale(rank: int, alpha: float | None) -> float:
  """alpha / r, 1 by default. Raises ValueError for a rank below 1 or an alpha of 0."""
  return lora_scale(rank, rank if alpha is None else alpha, rank_stabilised=False)


def balanced(u: Array, s: Array, v: Array, scale: float) -> tuple[Array, Array]:
  """A and B of equal norms with scale x A B = U S V^T: [d_in, r] and [r, d_out]."""
  root = jnp.sqrt(s / scale)
  return u * root, root[:, None] * v


def from_start(a: Array, b: Array) -> PissaDelta:
  """A delta that starts from these factors."""
  return PissaDelta(a, b, Kept(LoraDelta(jnp.copy(a), jnp.copy(b))))


def trained_part(
  pattern: str,
  part: Callable[[Key, str, Array], tuple[Array, Array]],
  scale: float,
  dropout: float,
) -> PeftTransform:
  """Trains a low-rank part of each weight, as a transform whose leaves are `PissaDelta`.

  Args:
    pattern: regex searched in the site path.
    part: `(key, path, w [d_in, d_out]) -> (A [d_in, r], B [r, d_out])` at init, of which
      scale x A B is taken off the frozen weight. Consumes the key.
    scale: of both products.
    dropout: share of the entries of x that A does not see in training.
  """

  def init_one(key, spec, weights):
    return from_start(*part(key, spec.site.path, weights.main))

  def run(delta, next_fn, x, w, b, drop=no_drop):
    start = delta.start.value
    # One product with both pairs of factors side by side.
    down = jnp.concatenate([delta.a, start.a], 1)
    up = jnp.concatenate([delta.b, -start.b], 0)
    return next_fn(x, w, b) + product(product(drop(x), down), up) * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    start = delta.start.value
    now = jnp.matmul(delta.a, delta.b, precision='highest')
    return scale * (now - jnp.matmul(start.a, start.b, precision='highest'))

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
