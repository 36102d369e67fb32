"""How a transform acts at the sites of a backbone, and how `watch` reads their values."""

from collections.abc import Callable
from typing import Any

import jax

from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, Site, Watch

Tap = Callable[..., Array]  # (site, next_fn, *args) -> out


def put_on(
  peft: PeftTransform | None, delta: Delta | None, params: Params, key: Key | None = None
) -> tuple[Delta, Params]:
  """Applies a transform before the first layer: the delta and the weights of one pass.

  Args:
    peft: the transform, or None.
    delta: of the transform, or None.
    params: the frozen weights, some of which selective transforms replace.
    key: of dropout and other noise; None leaves it out.

  Raises:
    ValueError: for a delta without its transform, or a transform without a delta.
  """
  if peft is None and delta is not None and jax.tree.leaves(delta):
    raise ValueError('apply(params, x, delta) needs the transform of the delta: give peft=..., too')
  if peft is not None and delta is None:
    raise ValueError(
      'apply(params, x, peft=...) needs a delta: give what peft.init(key, sites, params) returns'
    )
  if peft is None or delta is None:
    return {}, params
  if key is not None and peft.with_dropout is not None:
    delta = peft.with_dropout(delta, key)
  return delta, params if peft.replace is None else peft.replace(delta, params)


def tap_of(
  peft: PeftTransform | None,
  delta: Delta,
  watch: Watch | None = None,
  taps: dict[str, Any] | None = None,
  *,
  stack: str = '',
  layer: int | None = None,
) -> Tap:
  """Delivers a transform to the sites of a backbone.

  Args:
    peft: the transform, or None.
    delta: of the transform.
    watch: what to take from the sites, or None.
    taps: receives what `watch` returns, under `kind:path` of the site.
    stack: of the sites that go through this tap.
    layer: of these sites; None outside the blocks.

  Returns:
    `(site, next_fn, *args) -> out`.
  """

  run = None if peft is None else peft.intercept

  def tap(site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    if stack or layer is not None:
      site = site._replace(stack=stack, layer=layer)
    out = next_fn(*args) if run is None else run(delta, site, next_fn, *args)
    if watch is not None and taps is not None and (found := watch(site, args, out)) is not None:
      taps[f'{site.kind}:{site.path}'] = found
    return out

  return tap
