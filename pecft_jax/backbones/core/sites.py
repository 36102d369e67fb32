"""The sites of a backbone, found by tracing."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.peft.leaves import block_of
from pecft_jax.typing import PeftTransform, Site, SiteSpec


def find_sites(
  apply: Any, init: Any, shape: Sequence[int], dtype: Any = jnp.float32
) -> tuple[SiteSpec, ...]:
  """The sites that one abstract call of a backbone passes through, in order.

  Args:
    apply: as in `Backbone`; must call each site under its own name.
    init: `(key) -> params`.
    shape: of one input.
    dtype: of it, as `apply` takes it.
  """
  found: dict[Site, SiteSpec] = {}
  abstract = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)

  def record(delta, site, next_fn, *args):
    del delta
    out = next_fn(*args)
    if site.layer is None and (block := block_of(site.path)):  # The model did not set it.
      site = site._replace(stack=block.stack, layer=block.layer)
    found.setdefault(site, SiteSpec(site, abstract(args), abstract(out)))
    return out

  def trace(params, inputs):
    return apply(params, inputs, {}, peft=PeftTransform(lambda *_: {}, record)).pooled

  # By itself: jax remembers the shapes that `init` gives, which others ask for, too.
  params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  jax.eval_shape(trace, params, jax.ShapeDtypeStruct((1, *shape), dtype))
  return tuple(found.values())


def layered(sites: Sequence[SiteSpec], depth: int) -> tuple[SiteSpec, ...]:
  """The sites of `depth` blocks, all like the one block of the given sites."""

  def renamed(spec: SiteSpec, i: int) -> SiteSpec:
    path = spec.site.path.replace('block_0', f'block_{i}', 1)
    return spec._replace(site=spec.site._replace(path=path, layer=i))

  block = [spec for spec in sites if spec.site.layer == 0]
  first, last = sites.index(block[0]), sites.index(block[-1])
  blocks = [renamed(spec, i) for i in range(depth) for spec in block]
  return (*sites[:first], *blocks, *sites[last + 1 :])
