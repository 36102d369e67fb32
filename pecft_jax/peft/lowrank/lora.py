"""LoRA: low-rank updates of linear layers (Hu et al., 2021, arXiv:2106.09685).

With `rank_stabilised`, the scale is alpha / sqrt(r) (Kalajdzievski, 2023, arXiv:2312.03732).
Inits other than that of the published code: see `pecft_jax.peft.starts`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.starts import STARTS, Start, check_start, uniform
from pecft_jax.peft.weights import Weights
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform


class LoraDelta(NamedTuple):
  """y = x W + scale x A B, with r the rank."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init (Kaiming, slope sqrt(5)).
  b: Array  # [r, d_out], zeros at init.


@about(
  'transform',
  'low-rank',
  Paper('LoRA: low-rank adaptation of large language models', '2106.09685'),
  tiny=lambda: lora(rank=2),
)
@recorded
def lora(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  rank_stabilised: bool = False,
  dropout: float = 0.0,
  start: Start = 'uniform',
) -> PeftTransform:
  """Adds a low-rank product to matching linear sites.

  The scale is fixed by `rank` and `alpha`, not by the shapes met later, so a
  delta whose factors were joined on the rank axis is the sum of its parts.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the update is scaled by alpha / r; 2 r by default.
    rank_stabilised: scale by alpha / sqrt(r).
    dropout: share of the entries of x that A does not see in training.
    start: factors at init, with A B = 0. `uniform`: A uniform in +-sqrt(1 / d_in), B zero;
      `gaussian`: A normal with deviation 1 / r, B zero; `orthogonal`: both normal, in orthogonal
      halves of the rank; `zero_a`: A zero, B uniform in +-sqrt(1 / r).

  Raises:
    ValueError: for a rank below 1, an odd one with `orthogonal`, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 4)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=rank_stabilised)

  def run(delta, next_fn, x, w, b, drop=no_drop):
    return next_fn(x, w, b) + low_rank(delta, drop(x)) * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    return scale * jnp.matmul(delta.a, delta.b, precision='highest')

  check_start(start, rank)

  def init_one(key, spec, weights):
    del spec
    d_in, d_out = weights.main.shape
    return LoraDelta(*STARTS[start](key, d_in, d_out, rank))

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)


@about(
  'transform',
  'low-rank',
  Paper('A rank stabilization scaling factor for fine-tuning with LoRA', '2312.03732'),
  tiny=lambda: rslora(rank=2),
)
@recorded
def rslora(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  dropout: float = 0.0,
) -> PeftTransform:
  """Adds a low-rank product scaled by alpha / sqrt(r), for high ranks.

  Kalajdzievski, 2023, arXiv:2312.03732.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the update is scaled by alpha / sqrt(r); 2 r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import rslora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = rslora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].b.shape
  (4, 96)
  """
  return lora(pattern, rank, alpha, rank_stabilised=True, dropout=dropout)


def lora_scale(rank: int, alpha: float | None, *, rank_stabilised: bool) -> float:
  """alpha / r, or alpha / sqrt(r). Raises ValueError for a rank below 1 or an alpha of 0."""
  at_least(1, rank=rank)
  above(0, alpha=alpha)
  alpha = 2.0 * rank if alpha is None else alpha
  return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def init_lora(key: Key, weights: Weights, rank: int) -> LoraDelta:
  """A random, B zero. Consumes the key."""
  d_in, d_out = weights.main.shape
  return LoraDelta(*uniform(key, d_in, d_out, rank))


def low_rank(delta: LoraDelta, x: Array) -> Array:
  """x A B [..., d_out]; the product A B is never formed."""
  return product(product(x, delta.a), delta.b)
