"""LoRA: low-rank updates of linear layers (Hu et al., 2021, arXiv:2106.09685).

With `rank_stabilised`, the scale is alpha / sqrt(r) (Kalajdzievski, 2023, arXiv:2312.03732).
Inits other than that of the published code: see `pecft_jax.peft.starts`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.by_pattern import check_each_matches, first_match
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.starts import STARTS, Start, check_start, uniform
from pecft_jax.peft.svd import check_below_size
from pecft_jax.peft.weights import Weights
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, PeftTransform


class LoraDelta(NamedTuple):
  """y = x W + scale x A B, with r the rank."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init (Kaiming, slope sqrt(5)).
  b: Array  # [r, d_out], zeros at init.


class ScaledLoraDelta(NamedTuple):
  """y = x W + scale x A B, with a scale that differs between sites."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], as of `LoraDelta`.
  b: Array  # [r, d_out]
  scale: Kept  # []


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
  ranks: Mapping[str, int] | None = None,
  alphas: Mapping[str, float] | None = None,
) -> PeftTransform:
  """Adds a low-rank product to matching linear sites.

  The scale is fixed by `rank` and `alpha`, not by the shapes met later, so a
  delta whose factors were joined on the rank axis is the sum of its parts.

  Ranks and alphas by pattern give sites others than `rank` and `alpha`. Where all sites still have
  one scale, as with ranks alone, the delta has a `LoraDelta` at each; otherwise a
  `ScaledLoraDelta`, which methods that add up factors of several tasks do not take.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the update is scaled by alpha / r; 2 r by default.
    rank_stabilised: scale by alpha / sqrt(r).
    dropout: share of the entries of x that A does not see in training.
    start: factors at init, with A B = 0. `uniform`: A uniform in +-sqrt(1 / d_in), B zero;
      `gaussian`: A normal with deviation 1 / r, B zero; `orthogonal`: both normal, in orthogonal
      halves of the rank; `zero_a`: A zero, B uniform in +-sqrt(1 / r).
    ranks: ranks by regex, searched in the site path; the first match decides.
    alphas: alphas by regex in the same way.

  Raises:
    ValueError: for a rank below 1, an odd one with `orthogonal`, an alpha that is not positive, or
      a dropout outside [0, 1); at init, for a rank above both sides of a weight, or a regex of
      `ranks` or `alphas` that matches none of the sites.

  >>> import jax
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 4)
  >>> several = lora(r'attn/(q|v)$', rank=4, ranks={'block_5': 8, 'attn/q': 2})
  >>> delta = several.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> [delta[f'block_{at}'].a.shape[1] for at in ('0/attn/q', '0/attn/v', '5/attn/q')]
  [2, 4, 8]
  """
  scale = lora_scale(rank, alpha, rank_stabilised=rank_stabilised)
  ranks, alphas = ranks or {}, alphas or {}
  for r in {rank, *ranks.values()}:
    check_start(start, r)
    for each in {alpha, *alphas.values()}:
      lora_scale(r, each, rank_stabilised=rank_stabilised)  # Raises for wrong numbers.

  def own_scale(path: str) -> float:
    r, own = first_match(ranks, path, rank), first_match(alphas, path, alpha)
    return lora_scale(r, own, rank_stabilised=rank_stabilised)

  def scale_of(delta):
    return delta.scale.value if isinstance(delta, ScaledLoraDelta) else scale

  def run(delta, next_fn, x, w, b, drop=no_drop):
    return next_fn(x, w, b) + low_rank(delta, drop(x)) * jnp.asarray(scale_of(delta), x.dtype)

  def update(delta, w):
    del w
    return scale_of(delta) * jnp.matmul(delta.a, delta.b, precision='highest')

  def init_one(key, spec, weights):
    r = first_match(ranks, spec.site.path, rank)
    check_below_size(spec.site.path, weights.main, r)
    return LoraDelta(*STARTS[start](key, weights.main.shape[0], weights.main.shape[1], r))

  each = per_site('linear', pattern, init_one, run, dropout=dropout, update=update)

  def init(key, sites, params):
    delta = each.init(key, sites, params)
    check_each_matches('ranks', ranks, delta)
    check_each_matches('alphas', alphas, delta)
    return with_scales(delta, {path: own_scale(path) for path in delta}, scale)

  return each._replace(init=init) if ranks or alphas else each


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


def with_scales(delta: Mapping[str, LoraDelta], scales: Mapping[str, float], scale: float) -> Delta:
  """A delta of LoRA whose sites have scales of their own, unless all are that of the transform."""
  if all(math.isclose(own, scale) for own in scales.values()):
    return dict(delta)
  own = lambda path: Kept(jnp.asarray(scales[path], jnp.float32))
  return {path: ScaledLoraDelta(*leaf, own(path)) for path, leaf in delta.items()}


def init_lora(key: Key, weights: Weights, rank: int) -> LoraDelta:
  """A random, B zero. Consumes the key."""
  d_in, d_out = weights.main.shape
  return LoraDelta(*uniform(key, d_in, d_out, rank))


def low_rank(delta: LoraDelta | ScaledLoraDelta, x: Array) -> Array:
  """x A B [..., d_out]; the product A B is never formed."""
  return product(product(x, delta.a), delta.b)
