"""Makes the transforms work with Flax linen modules that declare no sites.

Every `nn.Dense` is a linear site and every `nn.LayerNorm` with a scale a norm
site, named by the module's path (`encoder/Dense_0`). Attention, sublayers and
token streams cannot be seen from outside a module.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from pecft_jax.peft.weights import read
from pecft_jax.typing import Array, Delta, Params, PeftTransform, Site, SiteSpec

_KINDS = ((nn.Dense, 'linear', 'kernel', 2), (nn.LayerNorm, 'norm', 'scale', 1))
_OURS = 'the site itself'  # Names the inner call; no attribute of a module can be called so.

Tap = Callable[..., Array]  # (site, next_fn, *args) -> out


def linen_sites(
  module: nn.Module, params: Params, *inputs: Any, **kwargs: Any
) -> tuple[SiteSpec, ...]:
  """The sites of a module, found by one abstract call.

  Args:
    module: any linen module.
    params: its `params` collection; may be abstract.
    *inputs: of `module.apply`; may be abstract.
    **kwargs: of `module.apply`; static.

  Raises:
    ValueError: if layers are scanned or vmapped.
  """
  found: dict[Site, SiteSpec] = {}
  abstract = lambda a: None if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype)

  def record(site: Site, next_fn: Any, *args: Array | None) -> Array:
    out = next_fn(*args)
    found.setdefault(site, SiteSpec(site, tuple(abstract(a) for a in args), abstract(out)))
    return out

  jax.eval_shape(lambda p, *x: _call(module, p, record, x, kwargs), params, *inputs)
  return tuple(found.values())


def linen_apply(module: nn.Module, peft: PeftTransform) -> Callable[..., Any]:
  """`apply(params, delta, *inputs, **kwargs)`: the module with a transform at its sites.

  Jit it as a whole; `kwargs` go to `module.apply`, so a `method`, `rngs` and
  `variables` (further collections beside `params`) can be given. For dropout
  give it `peft.with_dropout(delta, key)`.
  """

  def apply(params: Params, delta: Delta, *inputs: Any, **kwargs: Any) -> Any:
    run = peft.intercept

    def tap(site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
      return next_fn(*args) if run is None else run(delta, site, next_fn, *args)

    replaced = params if peft.replace is None else peft.replace(delta, params)
    return _call(module, replaced, tap, inputs, kwargs)

  return apply


def _call(module: nn.Module, params: Params, tap: Tap, inputs: Any, kwargs: Any) -> Any:
  def intercept(next_fun, args, kwargs, context):
    inner = context.module
    kind, main, ndim = next((k[1:] for k in _KINDS if isinstance(inner, k[0])), (None, '', 0))
    if kind is None or context.method_name != '__call__' or inner.name == _OURS:
      return next_fun(*args, **kwargs)
    w, b = (inner.get_variable('params', name) for name in (main, 'bias'))
    if w is None:
      return next_fun(*args, **kwargs)
    path = '/'.join(inner.path)
    stored = read(params, path).main
    if stored.ndim != ndim:
      # One call is traced for all layers here: they would silently share one delta.
      raise ValueError(
        f'{path!r} is scanned or vmapped: expected a {main} of {ndim} axes, '
        f'got {list(stored.shape)}; unroll the layers'
      )

    def run(x, w, b):
      own = {main: w} if b is None else {main: w, 'bias': b}
      # A copy that runs outside the module's scope, so that any weights can be given.
      call = inner.clone(parent=None, name=_OURS, use_bias=b is not None)
      return call.apply({'params': own}, x, *args[1:], **kwargs)

    return tap(Site(kind, path), run, args[0], w, b)

  variables = {**kwargs.get('variables', {}), 'params': params}
  rest = {key: value for key, value in kwargs.items() if key != 'variables'}
  with nn.intercept_methods(intercept):
    return module.apply(variables, *inputs, **rest)
