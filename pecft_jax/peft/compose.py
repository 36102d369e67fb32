"""Putting transforms together, and handling whole deltas as values."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.peft.leaves import layer_of, of_layers
from pecft_jax.peft.sites import site_key
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Delta, Key, Params, PeftTransform, Site, SiteSpec


@recorded
def nothing() -> PeftTransform:
  """No fine-tuning of the backbone at all: a linear probe trains the head alone."""
  return PeftTransform(init=lambda key, sites, params: {}, merge=lambda delta, params: params)


@recorded
def chain(**parts: PeftTransform) -> PeftTransform:
  """Applies several transforms, the first named innermost.

  Returns:
    A transform whose delta is `{name: delta of that part}`. It merges where
    every part does, selective parts first, since these replace weights before
    any site is reached.

  Raises:
    ValueError: if nothing is given.
  """
  if not parts:
    raise ValueError('chain() needs at least one named transform, as in chain(lora=lora(...))')

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    return {name: part.init(site_key(key, name), sites, params) for name, part in parts.items()}

  def intercept(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    for name, part in parts.items():
      next_fn = _around(part, delta[name], site, next_fn)
    return next_fn(*args)

  def weights(delta: Delta, params: Params) -> Params:
    for name, part in parts.items():
      params = part.weights(delta[name], params)
    return params

  order = sorted(parts, key=lambda name: not _selective(parts[name]))  # Stable.

  def merge(delta: Delta, params: Params) -> Params:
    for name in order:
      part = parts[name]
      assert part.merge is not None
      params = part.merge(delta[name], params)
    return params

  def noise(delta: Delta, key: Key) -> Delta:
    return {name: part.noise(delta[name], site_key(key, name)) for name, part in parts.items()}

  if all(_selective(part) for part in parts.values()):
    return PeftTransform(init, intercept, weights, weights)
  mergeable = all(part.merge is not None for part in parts.values())
  return PeftTransform(init, intercept, weights, merge if mergeable else None, noise)


def _selective(part: PeftTransform) -> bool:
  """Whether replacing weights is all that a transform does."""
  return part.merge is part.weights


def _around(part: PeftTransform, delta: Delta, site: Site, next_fn: Any) -> Callable[..., Array]:
  return lambda *args: part.intercept(delta, site, next_fn, *args)


@recorded
def at_layers(transform: PeftTransform, layers: Sequence[int]) -> PeftTransform:
  """Restricts a transform to the sites, and for selective methods the weights, of some blocks.

  Args:
    transform: any transform.
    layers: block numbers, counted from 0.

  Raises:
    ValueError: at init, if the backbone has no such block.
  """
  wanted = frozenset(layers)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    there = {layer_of(spec.site.path) for spec in sites} - {None}
    if not wanted or wanted - there:
      missing = sorted(wanted - there)
      raise ValueError(f'no blocks {missing}; blocks: {sorted(n for n in there if n is not None)}')
    inside = [spec for spec in sites if layer_of(spec.site.path) in wanted]
    return transform.init(key, inside, of_layers(params, sorted(wanted)))

  return transform._replace(init=init)


@recorded
def bank(transform: PeftTransform, size: int) -> PeftTransform:
  """A stack of `size` deltas of one transform, all of them active, slot 0 innermost.

  `take(delta, i)` gives one slot back as a delta of `transform` itself, also
  with a traced index, and with a vector of indices one per example (for vmap).

  Returns:
    A transform whose delta has a leading slot axis on every leaf.
  """
  if size < 1:
    raise ValueError(f'a bank needs at least one slot, got size={size}')

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    slots = [transform.init(k, sites, params) for k in jax.random.split(key, size)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *slots)

  def intercept(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    for slot in range(size):
      next_fn = _around(transform, take(delta, slot), site, next_fn)
    return next_fn(*args)

  def weights(delta: Delta, params: Params) -> Params:
    for slot in range(size):
      params = transform.weights(take(delta, slot), params)
    return params

  def merge(delta: Delta, params: Params) -> Params:
    assert transform.merge is not None
    for slot in range(size):
      params = transform.merge(take(delta, slot), params)
    return params

  def noise(delta: Delta, key: Key) -> Delta:
    return jax.vmap(transform.noise)(delta, jax.random.split(key, size))

  if _selective(transform):
    return PeftTransform(init, intercept, weights, weights)
  return PeftTransform(init, intercept, weights, merge if transform.merge else None, noise)


def take(delta: Delta, index: Array | int) -> Delta:
  """One slot of a bank (or several, with a vector of indices)."""
  return jax.tree.map(lambda leaf: leaf[index], delta)


def mix(delta: Delta, weights: Array) -> Delta:
  """The weighted sum of a bank's slots.

  Args:
    delta: a tree with a leading slot axis [S, ...] on every leaf.
    weights: [S]
  """
  return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1), delta)
