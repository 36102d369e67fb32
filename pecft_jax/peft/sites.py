"""How a transform finds its sites: by kind and by a pattern over their paths."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pecft_jax.paths import matches, shortened
from pecft_jax.peft import weights
from pecft_jax.peft.noise import Noisy, check_rate, dropper
from pecft_jax.typing import SITE_KINDS, Array, Delta, Key, Params, PeftTransform, Site, SiteSpec

WEIGHTED = ('linear', 'norm')


def matching_sites(sites: Sequence[SiteSpec], kind: str, pattern: str) -> list[SiteSpec]:
  """The sites of a kind whose path a regular expression is found in.

  Raises:
    ValueError: if there are none, the kind is not one of `SITE_KINDS`, or the pattern is no
      regular expression.
  """
  if kind not in SITE_KINDS:
    raise ValueError(f'unknown site kind {kind!r}; kinds: {SITE_KINDS}')
  found = [spec for spec in sites if spec.site.kind == kind and matches(pattern, spec.site.path)]
  if not found:
    paths = sorted(spec.site.path for spec in sites if spec.site.kind == kind)
    raise ValueError(f'no {kind!r} site matches {pattern!r}; sites: {shortened(paths)}')
  return found


def site_key(key: Key, path: str) -> Key:
  """The key of one site: a function of its path alone, whatever else matches."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))


def per_site(
  kind: str,
  pattern: str,
  init_one: Callable[[Key, SiteSpec, Any], Any],
  run: Callable[..., Array],
  merge_one: Callable[[Any, weights.Weights], weights.Weights] | None = None,
  dropout: float | None = None,
  update: Callable[[Any, Array], Array] | None = None,
) -> PeftTransform:
  """A transform that acts on each matching site by itself.

  Args:
    kind: one of `SITE_KINDS`.
    pattern: regex searched in the site path.
    init_one: `(key, spec, weights) -> leaf`; the `Weights` are None at sites
      that have none. Consumes the key.
    run: `(leaf, next_fn, *args) -> out`; with `dropout`, `(leaf, next_fn, *args,
      drop=...) -> out`.
    merge_one: `(leaf, weights) -> weights`, the weight-space form, if any.
    dropout: share of the entries of an array that `drop` sets to zero in
      training.
    update: `(leaf, w [d_in, d_out]) -> dW`, where a linear site becomes
      x (W + dW) + b; `merge_one` follows from it.

  Returns:
    A transform whose delta is `{site path: leaf}`.

  Raises:
    ValueError: for a share outside [0, 1), or an `update` at sites that are not
      linear; while tracing, with the name of the site, for a result of `run` or
      `merge_one` of another shape than the site's.

  >>> from pecft_jax.peft import weight_sites
  >>> shift = per_site(
  ...   'linear', 'fc',
  ...   init_one=lambda key, spec, weights: jnp.zeros(spec.out.shape[-1]),
  ...   run=lambda leaf, next_fn, x, w, b: next_fn(x, w, b) + leaf,
  ...   merge_one=lambda leaf, old: old._replace(bias=old.bias + leaf),
  ... )
  >>> params = {'fc': {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}}
  >>> delta = shift.init(jax.random.key(0), weight_sites(params), params)
  >>> shift.merge({'fc': delta['fc'] + 1}, params)['fc']['b'].tolist()
  [1.0, 1.0]
  """
  if update is not None and kind != 'linear':
    raise ValueError(f"update= is for 'linear' sites, got {kind!r}")
  if update is not None and merge_one is None:
    merge_one = _summing(update)
  rate = 0.0 if dropout is None else check_rate(dropout)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    return {
      spec.site.path: init_one(
        site_key(key, spec.site.path),
        spec,
        weights.read(params, spec.site.path) if kind in WEIGHTED else None,
      )
      for spec in matching_sites(sites, kind, pattern)
    }

  def intercept(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    if site.kind != kind or site.path not in delta:
      return next_fn(*args)
    leaf = delta[site.path]
    if isinstance(leaf, Noisy):
      out = run(leaf.leaf, next_fn, *args, drop=dropper(leaf.key, rate))
    else:
      out = run(leaf, next_fn, *args)
    _check_shape(out, _result_shape(kind, args), f'the result of {kind!r} site {site.path!r}')
    return out

  def merge(delta: Delta, params: Params) -> Params:
    assert merge_one is not None
    for path, leaf in delta.items():
      old = weights.read(params, path)
      new = merge_one(leaf, old)
      _check_shape(new.main, old.main.shape, f'the merged weights of {kind!r} site {path!r}')
      if old.bias is not None and new.bias is not None:
        _check_shape(new.bias, old.bias.shape, f'the merged bias of {kind!r} site {path!r}')
      if new.bias is old.bias:
        new = new._replace(bias=None)  # Nothing to write: the bias stays shared.
      params = weights.write(params, path, new)
    return params

  def with_dropout(delta: Delta, key: Key) -> Delta:
    return {path: Noisy(leaf, site_key(key, path)) for path, leaf in delta.items()}

  def update_at(delta: Delta, path: str, w: Array) -> Array:
    assert update is not None
    return update(delta[path], w) if path in delta else jnp.zeros_like(w)

  return PeftTransform(
    init,
    intercept,
    merge=merge if merge_one else None,
    with_dropout=with_dropout if rate else None,
    update=update_at if update else None,
  )


def _result_shape(kind: str, args: tuple[Any, ...]) -> tuple[int | None, ...]:
  """The shape that a site's result must have; None where any size is allowed."""
  first = args[0].shape
  if kind == 'linear':
    return *first[:-1], args[1].shape[-1]
  if kind in ('norm', 'attend'):
    return first
  # Sublayers may compute fewer rows than they read, and tokens be put in or taken away.
  return first[0], *[None] * (len(first) - 2), first[-1]


def _check_shape(array: Array, shape: tuple[int | None, ...], what: str) -> None:
  chex.assert_shape(
    array,
    shape,
    custom_message='This is {}',
    custom_message_format_vars=[what],  # Paths may hold braces.
    exception_type=ValueError,
  )


def _summing(update: Callable[[Any, Array], Array]) -> Callable[..., weights.Weights]:
  return lambda leaf, old: weights.Weights(old.main + update(leaf, old.main), old.bias)
