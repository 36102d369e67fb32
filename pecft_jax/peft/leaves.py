"""Every leaf of a tree of parameters under one name, however the tree is stored.

Names are those of a tree in which each layer and each projection has its own
weights: `block_3/attn/q/bias`. They stay the same where layers are stacked
(`blocks/…`, leading axis L) and q, k and v fused (`…/qkv/…`, an axis of 3), so a
delta made of named leaves moves between all of these.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.paths import map_named, named_leaves, shortened
from pecft_jax.typing import Array, Params, SiteSpec

_STACK = 'blocks/'


class Block(NamedTuple):
  """One block of a stack."""

  stack: str  # Its name; `''` in a model with one stack.
  layer: int  # Counted from 0.


def block_of(path: str) -> Block | None:
  """The block that a path lies in, or None outside the blocks."""
  found = re.match(r'(?:(.*?)/)?block_(\d+)(?:/|$)', path)
  return Block(found[1] or '', int(found[2])) if found else None


def layer_of(path: str) -> int | None:
  """The block number in a path, or None outside the blocks."""
  block = block_of(path)
  return None if block is None else block.layer


def inside(params: Params, stack: str) -> Params:
  """The part of a tree that holds a stack; all of it for the stack `''`."""
  for key in stack.split('/') if stack else ():
    params = params[key]
  return params


def with_inside(params: Params, stack: str, change: Callable[[Params], Params]) -> Params:
  """A tree whose part that holds a stack is changed; shares all others."""
  if not stack:
    return change(params)
  key, _, rest = stack.partition('/')
  return {**params, key: with_inside(params[key], rest, change)}


def of_layers(params: Params, layers: Collection[int]) -> Params:
  """The part of a tree that belongs to some blocks, as `block_0`, `block_1`, …"""
  if 'blocks' in params:
    return {f'block_{i}': jax.tree.map(lambda a, i=i: a[i], params['blocks']) for i in layers}
  return {key: value for key, value in params.items() if layer_of(key) in layers}


def read_leaves(params: Params, sites: Sequence[SiteSpec]) -> dict[str, Any]:
  """Every floating-point leaf by name, as a function that reads it.

  Args:
    params: a pytree of arrays.
    sites: of the backbone; their paths say which layers and projections are
      to have names of their own. May be empty.
  """
  paths = {spec.site.path for spec in sites}
  layered = any(layer_of(path) is not None for path in paths)
  found = {}

  def visit(name: str, shape: tuple[int, ...], read: Any) -> None:
    if layered and name.startswith(_STACK):
      for i in range(shape[0]):
        visit(f'block_{i}/{name[len(_STACK) :]}', shape[1:], lambda i=i: read()[i])
      return
    fused = _thirds(name)
    if fused and all(path.rpartition('/')[0] in paths for path in fused):
      for i, third in enumerate(fused):
        found[third] = lambda i=i: read()[i]
      return
    found[name] = read

  for name, leaf in named_leaves(params):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      visit(name, leaf.shape, lambda leaf=leaf: leaf)
  return found


def put_leaves(values: Mapping[str, Array], params: Params) -> Params:
  """A tree with the named leaves in place; shares all others.

  Raises:
    ValueError: if the tree has no leaf of some name.
  """
  used: set[str] = set()

  def new(name: str, leaf: Array) -> Array | None:
    if name in values:
      used.add(name)
      return values[name]
    if name.startswith(_STACK):
      rest = name[len(_STACK) :]
      return _stacked([(new(f'block_{i}/{rest}', a), a) for i, a in enumerate(leaf)])
    if fused := _thirds(name):
      return _stacked([(new(n, a), a) for n, a in zip(fused, leaf, strict=True)])
    return None

  def keep_or_new(name: str, leaf: Array) -> Array:
    value = new(name, leaf) if _may_hold(name, values) else None
    return leaf if value is None else value

  params = map_named(keep_or_new, params)
  if missing := sorted(set(values) - used):
    names = [name for name, _ in named_leaves(params)]
    raise ValueError(f'no leaves {shortened(missing)} to put; leaves: {shortened(names)}')
  return params


def _thirds(name: str) -> list[str]:
  """`…/qkv/bias` -> `…/q/bias`, `…/k/bias`, `…/v/bias`; empty for all other names."""
  found = re.fullmatch(r'((?:.*/)?)qkv/([^/]+)', name)
  return [f'{found[1]}{part}/{found[2]}' for part in 'qkv'] if found else []


def _may_hold(name: str, values: Mapping[str, Array]) -> bool:
  """Spares slicing a stacked or fused leaf that nothing goes into."""
  if not name.startswith(_STACK):
    return name in values or any(third in values for third in _thirds(name))
  rest = name[len(_STACK) :]
  wanted = {rest, *_thirds(rest)}
  return name in values or any(
    layer_of(key) is not None and key.partition('/')[2] in wanted for key in values
  )


def _stacked(parts: list[tuple[Array | None, Array]]) -> Array | None:
  if all(value is None for value, _ in parts):
    return None
  return jnp.stack([old if value is None else value for value, old in parts])
