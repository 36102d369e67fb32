"""Compacter: bottleneck adapters of sums of Kronecker products
(Mahabadi et al., 2021, arXiv:2106.04647).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.noise import Noisy, no_drop
from pecft_jax.peft.sites import per_site, site_key
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, SiteSpec

SHARED = 'rule'  # The part of a delta that all sites use.
_PAPER = Paper('Compacter: efficient low-rank hypercomplex adapter layers', '2106.04647')


class CompacterDelta(NamedTuple):
  """gelu(x W_down + b_down) W_up + b_up, with W = sum over i < n of A_i kron (s_i t_i^T).

  The matrices A_i of all layers, both down and up, are `delta['rule']` [n, n, n], with entries of
  deviation `spread` at init.
  """

  AXES = {'down_bias': ('rank',), 'up_bias': ('width',)}

  down_left: Array  # [n, D / n], s of W_down, Glorot uniform at init.
  down_right: Array  # [n, r / n], t of W_down, Glorot uniform at init.
  down_bias: Array  # [r], zeros at init.
  up_left: Array  # [n, r / n], s of W_up, Glorot uniform at init.
  up_right: Array  # [n, D / n], t of W_up, zeros at init.
  up_bias: Array  # [D], zeros at init.


@about('transform', 'adapters', _PAPER, tiny=lambda: compacter(width=4, factors=2))
@recorded
def compacter(
  width: int = 24,
  factors: int = 4,
  pattern: str = r'(attn|mlp)$',
  *,
  spread: float = 0.01,
  dropout: float = 0.0,
) -> PeftTransform:
  """Serial adapters whose weights are sums of Kronecker products, after attention and MLP.

  Trained are n^3 numbers for all layers, and 2 (D + r) + r + D at each site, where an adapter has
  2 D r + r + D. The paper's: n = 4, and r = D / 32. Hugging Face's peft has no such type.

  Args:
    width: r of the bottleneck, a multiple of n.
    factors: n, which divides the width of the tokens.
    pattern: regex searched in the path of `sublayer` sites.
    spread: standard deviation of the shared matrices at init.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: for a width or factors below 1, a spread that is not positive, or a dropout outside
      [0, 1); at init, where `factors` does not divide `width` or the width of the tokens.

  >>> import jax
  >>> from pecft_jax.peft import compacter
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = compacter(width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['rule'].shape, delta['block_0/mlp'].down_left.shape
  ((4, 4, 4), (4, 24))
  """
  at_least(1, width=width, factors=factors)
  above(0, spread=spread)

  def init_one(key, spec, weights):
    del weights  # Sublayers have none of their own.
    size = spec.out.shape[-1]
    if size % factors or width % factors:
      raise ValueError(
        f'{spec.site.path}: expected factors that divide the width of the bottleneck, {width}, and '
        f'that of the tokens, {size}, got {factors}'
      )
    outer, inner = size // factors, width // factors
    left, right, up = jax.random.split(key, 3)
    return CompacterDelta(
      _glorot(left, factors, outer),
      _glorot(right, factors, inner),
      jnp.zeros(width),
      _glorot(up, factors, inner),
      jnp.zeros((factors, outer)),
      jnp.zeros(size),
    )

  def run(own, next_fn, x, stream, drop=no_drop):
    rule, delta = own
    y = next_fn(x, stream)
    down = kronecker_sum(rule, delta.down_left, delta.down_right)
    up = kronecker_sum(rule, delta.up_left, delta.up_right)
    hidden = jax.nn.gelu(product(y, down) + delta.down_bias.astype(y.dtype))
    return y + product(drop(hidden), up) + delta.up_bias.astype(y.dtype)

  each = per_site('sublayer', pattern, init_one, run, dropout=dropout)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    rule = spread * jax.random.normal(site_key(key, SHARED), (factors,) * 3)
    return {SHARED: rule, **each.init(key, sites, params)}

  def intercept(delta, site, next_fn, *args):
    assert each.intercept is not None
    if site.path not in delta:
      return next_fn(*args)
    leaf, rule = delta[site.path], delta[SHARED]
    noisy = isinstance(leaf, Noisy)
    own = Noisy((rule, leaf.leaf), leaf.key) if noisy else (rule, leaf)
    return each.intercept({site.path: own}, site, next_fn, *args)

  def with_dropout(delta: Delta, key: Key) -> Delta:
    assert each.with_dropout is not None
    own = {path: leaf for path, leaf in delta.items() if path != SHARED}
    return {SHARED: delta[SHARED], **each.with_dropout(own, key)}

  return each._replace(
    init=init, intercept=intercept, with_dropout=with_dropout if each.with_dropout else None
  )


@about('transform', 'adapters', _PAPER, tiny=lambda: compacter_pp(width=4, factors=2))
@recorded
def compacter_pp(width: int = 24, factors: int = 4, *, dropout: float = 0.0) -> PeftTransform:
  """Adapters of sums of Kronecker products after the MLP of every block (Compacter++).

  Args:
    width: r of the bottleneck, a multiple of n.
    factors: n, which divides the width of the tokens.
    dropout: share of the entries after the activation that are zero in training.

  Raises:
    ValueError: as `compacter`.

  >>> import jax
  >>> from pecft_jax.peft import compacter_pp
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = compacter_pp(width=8)
  >>> len(transform.init(jax.random.key(0), model.backbone.sites, model.params))
  7
  """
  return compacter(width, factors, r'mlp$', dropout=dropout)


def kronecker_sum(rule: Array, left: Array, right: Array) -> Array:
  """The sum over i of A_i kron (s_i t_i^T): [n a, n b] of A [n, n, n], s [n, a] and t [n, b].

  >>> kronecker_sum(jnp.ones((1, 1, 1)), jnp.ones((1, 2)), jnp.ones((1, 3))).shape
  (2, 3)
  """
  whole = jnp.einsum('ipq,ia,ib->paqb', rule, left, right, precision='highest')
  return whole.reshape(rule.shape[1] * left.shape[1], -1)


def _glorot(key: Key, count: int, size: int) -> Array:
  """Vectors [n, size], uniform as columns [size, 1] of a Glorot init."""
  bound = math.sqrt(6 / (size + 1))
  return jax.random.uniform(key, (count, size), minval=-bound, maxval=bound)
