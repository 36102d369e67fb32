"""VeRA: trained scalings of random factors that all layers share
(Kopiczko et al., 2023, arXiv:2310.11454).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import matching_sites, per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, SiteSpec


class VeraDelta(NamedTuple):
  """y = x W + (((x A) * d) B) * b with A and B frozen."""

  AXES = {'inner': ('rank',), 'outer': ('out',)}

  inner: Array  # [r], the paper's d, 0.1 at init.
  outer: Array  # [d_out], the paper's b, zeros at init.


@about(
  'transform',
  'low-rank',
  Paper('VeRA: vector-based random matrix adaptation', '2310.11454'),
  tiny=lambda: vera(rank=3),
)
@recorded
def vera(
  pattern: str = r'attn/(q|v)$',
  rank: int = 256,
  *,
  seed: int = 0,
  fan_in: int | None = None,
  factors: tuple[Array, Array] | None = None,
) -> PeftTransform:
  """Rescales one random low-rank product at matching linear sites.

  A and B are drawn again from the seed wherever they are needed, and are not part
  of the delta. Every site reads the leading rows of the same A and the leading
  columns of the same B. Keep the seed with a saved delta.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    seed: of the random factors.
    fan_in: the largest d_in among the sites, which fixes the scale of A; may be left out where all
      have the same.
    factors: A [d_in, r] and B [r, d_out] of the largest site in the place of those of the seed, as
      of an adapter that another library trained.

  Raises:
    ValueError: for a rank below 1, or factors of another rank; at init, if sites differ in d_in and
      `fan_in` is not the largest, or factors are smaller than a site.

  >>> import jax
  >>> from pecft_jax.peft import vera
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = vera(r'attn/q$', rank=16)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].inner.shape
  (16,)
  """
  at_least(1, rank=rank, fan_in=fan_in)
  at_least(0, seed=seed)

  if factors is not None and (factors[0].shape[1], factors[1].shape[0]) != (rank, rank):
    shapes = [list(each.shape) for each in factors]
    raise ValueError(f'expected factors [d_in, {rank}] and [{rank}, d_out], got {shapes}')

  def factors_at(w: Array) -> tuple[Array, Array]:
    if factors is not None:
      return factors[0][: w.shape[0]], factors[1][:, : w.shape[1]]
    return shared_factors(seed, rank, *w.shape, fan_in=fan_in or w.shape[0])

  def init_one(key, spec, weights):
    del key, spec  # Nothing trained is random.
    return VeraDelta(jnp.full(rank, 0.1, jnp.float32), jnp.zeros(weights.main.shape[1]))

  def run(delta, next_fn, x, w, b):
    first, second = factors_at(w)
    inner, outer = delta.inner.astype(x.dtype), delta.outer.astype(x.dtype)
    return next_fn(x, w, b) + product(product(x, first) * inner, second) * outer

  def update(delta, w):
    first, second = factors_at(w)
    return jnp.matmul(first * delta.inner, second * delta.outer, precision='highest')

  each = per_site('linear', pattern, init_one, run, update=update)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    found = matching_sites(sites, 'linear', pattern)
    widths = {spec.args[1].shape[0] for spec in found}
    if factors is not None:
      _check_size(factors, found)
    elif (fan_in is None and len(widths) > 1) or (fan_in or max(widths)) < max(widths):
      raise ValueError(
        f'sites have inputs of widths {sorted(widths)}: vera() needs fan_in={max(widths)}, '
        f'got {fan_in}'
      )
    return each.init(key, sites, params)

  return each._replace(init=init)


def _check_size(factors: tuple[Array, Array], specs: Sequence[SiteSpec]) -> None:
  for spec in specs:
    d_in, d_out = spec.args[1].shape
    if d_in > factors[0].shape[0] or d_out > factors[1].shape[1]:
      raise ValueError(
        f'{spec.site.path}: its weight [{d_in}, {d_out}] is larger than the factors, '
        f'{list(factors[0].shape)} and {list(factors[1].shape)}'
      )


def shared_factors(
  seed: int, rank: int, d_in: int, d_out: int, *, fan_in: int
) -> tuple[Array, Array]:
  """A [d_in, r] and B [r, d_out], uniform with variances 2 / fan_in and 2 / r.

  Smaller factors are leading parts of larger ones of the same `fan_in`: each row
  of A and each column of B has a key of its own.
  """
  key_a, key_b = jax.random.split(jax.random.key(seed, impl='threefry2x32'))

  def rows(key: Key, count: int, fan: int) -> Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    bound = math.sqrt(6 / fan)  # Kaiming uniform for a rectifier, as in the paper.
    return jax.vmap(lambda k: jax.random.uniform(k, (rank,), minval=-bound, maxval=bound))(keys)

  return rows(key_a, d_in, fan_in), rows(key_b, d_out, rank).T
