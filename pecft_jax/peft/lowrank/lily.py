"""Lily: low-rank factors that layers share, mixed by a router
(Zhong et al., 2024, arXiv:2407.09946).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import matching_sites, per_site, site_key
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Kept, Key, Params, PeftTransform, SiteSpec

SHARED = 'lily'  # The part of a delta that sites share.

# What a mixture of experts is of: a token, or all tokens of a batch.
Over = Literal['token', 'batch']


class LilyShared(NamedTuple):
  """The factors of all sites of one kind: of one name in their blocks, and one shape."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [G, d_in, r], uniform in +-sqrt(1 / d_in) at init, one for each `stride` layers.
  b: Array  # [N, r, d_out], zeros at init: the experts.


class LilyDelta(NamedTuple):
  """y = x W + scale h sum_e p_e B_e, with h = x A and p = softmax(h R).

  A and B are in `delta['lily']`, by the site's name in its block. Hugging Face's LILY: `lily_A` =
  A^T, `lily_B` = B as [N r, d_out], `lily_router` = R^T.
  """

  AXES = {'router': ('rank', None)}

  router: Array  # [r, N], R, uniform in +-sqrt(1 / r) at init.
  group: Kept  # [] int32, which A is its own.


@about(
  'transform',
  'low-rank',
  Paper('Low-rank interconnected adaptation across layers', '2407.09946'),
  tiny=lambda: lily(rank=2, stride=2),
)
@recorded
def lily(
  pattern: str = r'attn/(q|v)$',
  rank: int = 32,
  experts: int = 2,
  stride: int = 1,
  *,
  scale: float = 1.0,
  over: Over = 'token',
) -> PeftTransform:
  """Adds low-rank products whose factors layers share, and each layer mixes.

  For each kind of site are trained ceil(L / stride) d_in r numbers for A, N r d_out for B, and
  L r N for the routers, with L its layers. It cannot be merged: the mixture depends on the input.

  The authors' code and Hugging Face's peft average the probabilities p over all tokens of a batch,
  so that what an example gives depends on the others beside it, on pads, and on later tokens of a
  causal model; `over='batch'` is that. By default each token has its own, and with one token both
  are the same. The code has a rectifier in h at MLPs, which peft and this leave out. Hugging Face's
  defaults: r = 32, N = 2, stride 1, scale 1.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    experts: N, at least 2.
    stride: consecutive layers that share an A, at least 1.
    scale: of the update.
    over: `token` or `batch`, what has a mixture of its own.

  Raises:
    ValueError: for a rank or stride below 1, fewer than two experts, a scale that is not positive,
      or another `over`.

  >>> import jax
  >>> from pecft_jax.peft import lily
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lily(r'attn/q$', rank=4, experts=3, stride=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['lily']['attn/q'].a.shape, delta['lily']['attn/q'].b.shape
  ((3, 96, 4), (3, 4, 96))
  """
  at_least(1, rank=rank, stride=stride)
  at_least(2, experts=experts)
  above(0, scale=scale)

  def run(own, next_fn, x, w, b):
    shared, delta = own
    h = product(x, shared.a[delta.group.value])
    probabilities = jax.nn.softmax(product(h, delta.router).astype(jnp.float32))
    if over == 'batch':
      mixture = probabilities.reshape(-1, experts).mean(0)
      update = product(h, jnp.tensordot(mixture, shared.b, 1))
    else:
      mixed = probabilities.astype(h.dtype)[..., None] * h[..., None, :]  # [..., N, r]
      mixed = mixed.reshape(*h.shape[:-1], experts * rank)
      update = product(mixed, shared.b.reshape(experts * rank, -1))
    return next_fn(x, w, b) + jnp.asarray(scale, x.dtype) * update

  def init_one(key, spec, weights):
    del spec, weights
    return LilyDelta(_uniform(key, (rank, experts), rank), Kept(jnp.zeros((), jnp.int32)))

  each = per_site('linear', pattern, init_one, run)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    delta, shared = each.init(key, sites, params), {}
    for kind, specs in kinds(matching_sites(sites, 'linear', pattern)).items():
      d_in, d_out = specs[0].args[1].shape
      keys = jax.random.split(site_key(key, f'{SHARED}/{kind}'), -(-len(specs) // stride))
      a = jnp.stack([_uniform(k, (d_in, rank), d_in) for k in keys])
      shared[kind] = LilyShared(a, jnp.zeros((experts, rank, d_out)))
      for i, spec in enumerate(specs):
        group = Kept(jnp.asarray(i // stride, jnp.int32))
        delta[spec.site.path] = delta[spec.site.path]._replace(group=group)
    return {SHARED: shared, **delta}

  def intercept(delta, site, next_fn, *args):
    assert each.intercept is not None
    if site.path not in delta:
      return next_fn(*args)
    own = delta[SHARED][_kind(site.path)], delta[site.path]
    return each.intercept({site.path: own}, site, next_fn, *args)

  return each._replace(init=init, intercept=intercept)


def kinds(specs: Sequence[SiteSpec]) -> Mapping[str, list[SiteSpec]]:
  """Sites that share factors, from the lowest layer up, by their name in their block.

  Raises:
    ValueError: if two of one name have weights of different shapes.
  """
  found: dict[str, list[SiteSpec]] = {}
  for spec in sorted(specs, key=lambda spec: spec.site.layer or 0):
    found.setdefault(_kind(spec.site.path), []).append(spec)
  for kind, own in found.items():
    shapes = sorted({tuple(spec.args[1].shape) for spec in own})
    if len(shapes) > 1:
      raise ValueError(f'{kind}: expected weights of one shape in all layers, got {shapes}')
  return found


def _kind(path: str) -> str:
  """`block_3/attn/q` -> `attn/q`."""
  return re.sub(r'(^|/)block_\d+/', r'\1', path)


def _uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> Any:
  bound = math.sqrt(1 / fan_in)
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
