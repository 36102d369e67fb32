"""Composition of transforms, and operations on whole deltas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.peft.leaves import of_layers, stacks_named, stacks_of
from pecft_jax.peft.sites import site_key
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Calibration,
  Delta,
  Kept,
  Key,
  Params,
  PeftTransform,
  Site,
  SiteSpec,
)


@recorded
def nothing() -> PeftTransform:
  """No fine-tuning of the backbone at all: a linear probe trains the head alone.

  >>> import jax
  >>> from pecft_jax.peft import nothing
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = nothing()
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta
  {}
  """
  return PeftTransform(lambda key, sites, params: {}, merge=lambda delta, params: params)


@recorded
def chain(**parts: PeftTransform) -> PeftTransform:
  """Applies several transforms, the first named innermost.

  Args:
    **parts: transforms by name, in the order from the inside out.

  Returns:
    A transform whose delta is `{name: delta of that part}`. It can be merged where every part can,
    selective parts first, since these replace weights before any site is reached.

  Raises:
    ValueError: if nothing is given, or for parts whose calibrations need different passes.

  >>> import jax
  >>> from pecft_jax.peft import adaptformer, chain, lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = chain(low_rank=lora('q$', rank=2), adapters=adaptformer(width=4))
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> sorted(delta)
  ['adapters', 'low_rank']
  """
  if not parts:
    raise ValueError('chain() needs at least one named transform, as in chain(lora=lora(...))')

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    return {name: part.init(site_key(key, name), sites, params) for name, part in parts.items()}

  def intercept(delta: Delta, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    for name, part in parts.items():
      next_fn = _around(part, delta[name], site, next_fn)
    return next_fn(*args)

  def replace(delta: Delta, params: Params) -> Params:
    for name, part in parts.items():
      params = params if part.replace is None else part.replace(delta[name], params)
    return params

  order = sorted(parts, key=lambda name: not parts[name].selective)  # Stable.

  def merge(delta: Delta, params: Params) -> Params:
    for name in order:
      part = parts[name]
      assert part.merge is not None
      params = part.merge(delta[name], params)
    return params

  def with_dropout(delta: Delta, key: Key) -> Delta:
    def one(name: str, part: PeftTransform) -> Delta:
      own = delta[name]
      return own if part.with_dropout is None else part.with_dropout(own, site_key(key, name))

    return {name: one(name, part) for name, part in parts.items()}

  def after(delta: Delta, grads: Delta, progress: Array) -> Delta:
    def one(name: str, part: PeftTransform) -> Delta:
      own = delta[name]
      return own if part.after is None else part.after(own, grads[name], progress)

    return {name: one(name, part) for name, part in parts.items()}

  def penalty(delta: Delta) -> Array:
    penalties = {name: part.penalty for name, part in parts.items() if part.penalty is not None}
    return sum((fn(delta[name]) for name, fn in penalties.items()), jnp.zeros(()))

  has = lambda field: any(getattr(part, field) is not None for part in parts.values())
  return PeftTransform(
    init,
    intercept if has('intercept') else None,
    replace if has('replace') else None,
    merge if all(part.merge is not None for part in parts.values()) else None,
    with_dropout if has('with_dropout') else None,
    after=after if has('after') else None,
    penalty=penalty if has('penalty') else None,
    calibrate=_calibrated_together(parts) if has('calibrate') else None,
    selective=all(part.selective for part in parts.values()),
  )


def _calibrated_together(parts: Mapping[str, PeftTransform]) -> Calibration:
  """One pass over the data for all parts with a calibration."""
  asking = {name: part.calibrate for name, part in parts.items() if part.calibrate is not None}
  watching = {name: each.watch for name, each in asking.items() if each.watch is not None}
  passes = {name: (each.examples, each.each) for name, each in asking.items()}
  if len(set(passes.values())) > 1:
    raise ValueError(
      'parts of a chain share one pass for their calibration: expected equal `examples` and '
      f'`each`, got {passes}'
    )

  def watch(site: Site, args: tuple[Any, ...], out: Array) -> Any:
    found = {name: fn(site, args, out) for name, fn in watching.items()}
    found = {name: tree for name, tree in found.items() if tree is not None}
    return found or None

  def names_of(name: str, delta: Delta) -> Sequence[str]:
    gradients = asking[name].gradients
    return () if gradients is None else gradients(delta[name])

  def gradients(delta: Delta) -> Sequence[str]:
    return sorted({each for name in asking for each in names_of(name, delta)})

  def empty(delta: Delta, weights: Mapping[str, Any]) -> Any:
    own = lambda name: {each: weights[each] for each in names_of(name, delta)}
    return {name: each.empty(delta[name], own(name)) for name, each in asking.items()}

  def add(statistics: Any, taps: dict[str, Any], valid: Array) -> Any:
    gradient = {at: found for at, found in taps.items() if at.startswith('gradient:')}
    seen = {at: found for at, found in taps.items() if at not in gradient}
    own = lambda name: {at: found[name] for at, found in seen.items() if name in found} | gradient
    return {name: each.add(statistics[name], own(name), valid) for name, each in asking.items()}

  def finish(delta: Delta, statistics: Any) -> Delta:
    new = {name: each.finish(delta[name], statistics[name]) for name, each in asking.items()}
    return {**delta, **new}

  asked = any(each.gradients is not None for each in asking.values())
  (examples, each) = next(iter(passes.values()))
  return Calibration(
    watch if watching else None, empty, add, finish, gradients if asked else None, each, examples
  )


def _around(
  part: PeftTransform, delta: Delta, site: Site, next_fn: Callable[..., Array]
) -> Callable[..., Array]:
  run = part.intercept
  return next_fn if run is None else lambda *args: run(delta, site, next_fn, *args)


@recorded
def at_layers(
  transform: PeftTransform, layers: Sequence[int], stack: str | None = None
) -> PeftTransform:
  """Restricts a transform to the sites, and for selective methods the weights, of some blocks.

  Args:
    transform: any transform.
    layers: block numbers, counted from 0.
    stack: name of the stack that the blocks are of, such as `'text'`; None for
      every stack of the backbone.

  Raises:
    ValueError: at init, if the backbone has no such block or stack.

  >>> import jax
  >>> from pecft_jax.peft import at_layers, lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = at_layers(lora('attn/q$', rank=2), [4, 5])
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> sorted(delta)
  ['block_4/attn/q', 'block_5/attn/q']
  """
  wanted = frozenset(layers)

  def init(key: Key, sites: Sequence[SiteSpec], params: Params) -> Delta:
    chosen = stacks_named(stacks_of(sites), stack)
    for name, there in chosen.items():
      if not wanted or wanted - set(there):
        where = f' in stack {name!r}' if name else ''
        raise ValueError(f'no blocks {sorted(wanted - set(there))}{where}; blocks: {there}')
    inside = [s for s in sites if s.site.stack in chosen and s.site.layer in wanted]
    return transform.init(key, inside, of_layers(params, dict.fromkeys(chosen, sorted(wanted))))

  return transform._replace(init=init)


@recorded
def bank(transform: PeftTransform, size: int) -> PeftTransform:
  """A stack of `size` deltas of one transform, all of them active, slot 0 innermost.

  `take(delta, i)` gives one slot back as a delta of `transform` itself, also
  with a traced index, and with a vector of indices one per example (for vmap).

  Args:
    transform: of one slot.
    size: S, number of slots, at least 1.

  Returns:
    A transform whose delta has a leading slot axis on every leaf.

  Raises:
    ValueError: for a size below 1, or a transform with a calibration.

  >>> import jax
  >>> from pecft_jax.peft import bank, lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = bank(lora('block_0/attn/q$', rank=2), 3)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (3, 96, 2)
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

  def replace(delta: Delta, params: Params) -> Params:
    assert transform.replace is not None
    for slot in range(size):
      params = transform.replace(take(delta, slot), params)
    return params

  def merge(delta: Delta, params: Params) -> Params:
    assert transform.merge is not None
    for slot in range(size):
      params = transform.merge(take(delta, slot), params)
    return params

  def with_dropout(delta: Delta, key: Key) -> Delta:
    assert transform.with_dropout is not None
    return jax.vmap(transform.with_dropout)(delta, jax.random.split(key, size))

  def after(delta: Delta, grads: Delta, progress: Array) -> Delta:
    assert transform.after is not None
    return jax.vmap(transform.after, (0, 0, None))(delta, grads, progress)

  def penalty(delta: Delta) -> Array:
    assert transform.penalty is not None
    return jax.vmap(transform.penalty)(delta).sum()

  if transform.calibrate is not None:
    raise ValueError(
      'a bank has no calibration: all its slots are active, and would be calibrated on one '
      'another; calibrate the transform of one task, and keep it in a slot'
    )
  return PeftTransform(
    init,
    intercept if transform.intercept else None,
    replace if transform.replace else None,
    merge if transform.merge else None,
    with_dropout if transform.with_dropout else None,
    after=after if transform.after else None,
    penalty=penalty if transform.penalty else None,
    selective=transform.selective,
  )


def take(delta: Delta, index: Array | int) -> Delta:
  """One slot of a bank (or several, with a vector of indices).

  Args:
    delta: of a bank: a tree with a leading slot axis [S, ...] on every leaf.
    index: [] int32 or an int; or [B] int32, one slot for each example.

  >>> import jax.numpy as jnp
  >>> take({'a': jnp.arange(6).reshape(3, 2)}, 1)['a'].tolist()
  [2, 3]
  """
  return jax.tree.map(lambda leaf: leaf[index], delta)


def mix(delta: Delta, weights: Array) -> Delta:
  """The weighted sum of a bank's slots; what is `Kept` is that of slot 0.

  Args:
    delta: a tree with a leading slot axis [S, ...] on every leaf.
    weights: [S]

  >>> import jax.numpy as jnp
  >>> mix({'a': jnp.array([[1.0, 2.0], [3.0, 4.0]])}, jnp.array([0.5, 0.5]))['a'].tolist()
  [2.0, 3.0]
  """

  def one(leaf: Any) -> Any:
    if isinstance(leaf, Kept):
      return take(leaf, 0)
    return jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1)

  return jax.tree.map(one, delta, is_leaf=lambda leaf: isinstance(leaf, Kept))
