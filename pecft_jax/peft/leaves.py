"""Every leaf of a tree of parameters under one name, however the tree is stored.

Names are those of a tree in which each layer and each projection has its own
weights: `block_3/attn/q/bias`. They stay the same where layers are stacked
(`blocks/…`, leading axis L) and q, k and v fused (`…/qkv/…`, an axis of 3), so a
delta made of named leaves moves between all of these.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.paths import join, map_named, matches, named_leaves, shortened
from pecft_jax.peft.fused import parts_of
from pecft_jax.quantised import dense, is_quantised
from pecft_jax.typing import Array, Params, SiteSpec

MAIN = ('kernel', 'w', 'weight', 'scale')  # Names of the main weights of sites.


class Block(NamedTuple):
  """One block of a stack."""

  stack: str  # Its name; `''` in a model with one stack.
  layer: int  # Counted from 0.


def block_of(path: str) -> Block | None:
  """The block of a path, or None outside the blocks."""
  found = re.match(r'(?:(.*?)/)?block_(\d+)(?:/|$)', path)
  return Block(found[1] or '', int(found[2])) if found else None


def stacks_of(sites: Sequence[SiteSpec]) -> dict[str, list[int]]:
  """The stacks of a backbone, each with the numbers of its blocks."""
  found: dict[str, set[int]] = {}
  for spec in sites:
    if spec.site.layer is not None:
      found.setdefault(spec.site.stack, set()).add(spec.site.layer)
  return {stack: sorted(layers) for stack, layers in found.items()}


def stacks_named(stacks: Mapping[str, list[int]], stack: str | None) -> dict[str, list[int]]:
  """One of the stacks of a model, or all of them.

  Args:
    stacks: numbers of blocks by stack.
    stack: its name; None for all.

  Raises:
    ValueError: if the model has no blocks, or no such stack.
  """
  if not stacks or (stack is not None and stack not in stacks):
    wanted = 'blocks' if stack is None else f'blocks in a stack {stack!r}'
    raise ValueError(f'the model has no {wanted}; stacks: {sorted(stacks)}')
  return {name: there for name, there in stacks.items() if stack in (None, name)}


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


def of_layers(params: Params, layers: Mapping[str, Collection[int]]) -> Params:
  """The part of a tree that belongs to some blocks, as `block_0`, `block_1`, …

  Args:
    params: of a backbone, loop or stacked.
    layers: numbers of blocks by stack.
  """
  out: Params = {}
  for stack, numbers in layers.items():
    own = inside(params, stack)
    if 'blocks' in own:
      found = {f'block_{i}': jax.tree.map(lambda a, i=i: a[i], own['blocks']) for i in numbers}
    else:
      found = {key: value for key, value in own.items() if _number(key) in numbers}
    at = out
    for key in stack.split('/') if stack else ():
      at = at.setdefault(key, {})
    at.update(found)
  return out


def read_leaves(params: Params, sites: Sequence[SiteSpec]) -> dict[str, Any]:
  """Every floating-point leaf by name, as a function that reads it.

  Args:
    params: a pytree of arrays.
    sites: of the backbone; their paths say which layers and projections are
      to have names of their own. May be empty.
  """
  paths = {spec.site.path for spec in sites}
  stacks = stacks_of(sites)
  found = {}

  def visit(name: str, shape: tuple[int, ...], read: Any) -> None:
    stack, rest = _in_stack(name)
    if rest and stack in stacks:
      for i in range(shape[0]):
        visit(_of_block(stack, i, rest), shape[1:], lambda i=i: read()[i])
      return
    fused = _parts(name)
    if fused and all(path.rpartition('/')[0] in paths for path in fused):
      for i, part in enumerate(fused):
        found[part] = lambda i=i: read()[i]
      return
    found[name] = read

  for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantised):
    name = join(path)
    if is_quantised(leaf):
      shape = jax.eval_shape(dense, leaf).shape
      visit(name, shape, functools.partial(_refuse, name))
    elif jnp.issubdtype(leaf.dtype, jnp.floating):
      visit(name, leaf.shape, lambda leaf=leaf: leaf)
  return found


def _refuse(name: str) -> Any:
  """Raises ValueError: a quantised leaf has no entries that could be trained."""
  raise ValueError(
    f'{name} is quantised, and cannot be trained or replaced: choose other weights, such as biases '
    'and norms, or a model with float weights'
  )


def matching_leaves(pattern: str, names: Iterable[str]) -> list[str]:
  """The names of leaves that a regular expression is found in.

  Raises:
    ValueError: if there are none.
  """
  names = list(names)
  found = [name for name in names if matches(pattern, name)]
  if not found:
    raise ValueError(f'no leaf matches {pattern!r}; leaves: {shortened(names)}')
  return found


def leaf_named(name: str, leaves: Collection[str]) -> str:
  """The leaf of this name, or the main weight of the site of this name.

  Raises:
    ValueError: if it is neither.
  """
  found = [full for full in (name, *(f'{name}/{main}' for main in MAIN)) if full in leaves]
  if not found:
    raise ValueError(f'no leaf or site {name!r}; leaves: {shortened(sorted(leaves))}')
  return found[0]


def weights_named(
  names: Collection[str], params: Params, sites: Sequence[SiteSpec]
) -> dict[str, Array]:
  """Leaves, and the main weights of sites, by the names that were given."""
  leaves = read_leaves(params, sites)
  return {name: leaves[leaf_named(name, leaves)]() for name in names}


def put_named(values: Mapping[str, Array], params: Params, sites: Sequence[SiteSpec]) -> Params:
  """The inverse of `weights_named`: a tree with these in place."""
  leaves = read_leaves(params, sites)
  return put_leaves({leaf_named(name, leaves): value for name, value in values.items()}, params)


def put_leaves(values: Mapping[str, Array], params: Params) -> Params:
  """A tree with the named leaves in place; shares all others.

  Raises:
    ValueError: if the tree has no leaf of some name.
  """
  return change_leaves(
    {name: lambda _, value=value: value for name, value in values.items()}, params
  )


def change_leaves(changes: Mapping[str, Callable[[Array], Array]], params: Params) -> Params:
  """A tree whose named leaves are functions of what they were; shares all others.

  Raises:
    ValueError: if the tree has no leaf of some name.
  """
  used: set[str] = set()
  blocks = [(block, key) for key in changes if (block := block_of(key))]

  def new(name: str, leaf: Array) -> Array | None:
    if name in changes:
      used.add(name)
      return changes[name](leaf)
    stack, rest = _in_stack(name)
    if rest:
      wanted = {rest, *_parts(rest)}
      # Spares slicing a stacked leaf that nothing goes into.
      if any(block.stack == stack and _after(block, key) in wanted for block, key in blocks):
        return _stacked([(new(_of_block(stack, i, rest), a), a) for i, a in enumerate(leaf)])
      return None
    fused = _parts(name)
    if any(part in changes for part in fused) and len(leaf) == len(fused):
      return _stacked([(new(n, a), a) for n, a in zip(fused, leaf, strict=True)])
    return None

  def keep_or_new(name: str, leaf: Array) -> Array:
    value = new(name, leaf)
    return leaf if value is None else value

  params = map_named(keep_or_new, params)
  if missing := sorted(set(changes) - used):
    names = [name for name, _ in named_leaves(params)]
    raise ValueError(f'no leaves {shortened(missing)} to put; leaves: {shortened(names)}')
  return params


def _number(key: str) -> int | None:
  block = block_of(key)
  return None if block is None else block.layer


def _in_stack(name: str) -> tuple[str, str]:
  """Stack and rest of the name of a stacked leaf: `text/blocks/fc/bias` -> `text`, `fc/bias`."""
  found = re.match(r'(?:(.*?)/)?blocks/(.*)', name)
  return (found[1] or '', found[2]) if found else ('', '')


def _of_block(stack: str, layer: int, rest: str) -> str:
  return '/'.join(part for part in (stack, f'block_{layer}', rest) if part)


def _after(block: Block, key: str) -> str:
  """What follows the block in a name."""
  return key[len(_of_block(*block, '')) + 1 :]


def _parts(name: str) -> list[str]:
  """`…/qkv/bias` -> `…/q/bias`, `…/k/bias`, `…/v/bias`; empty where nothing is fused."""
  path, _, leaf = name.rpartition('/')
  around, slash, module = path.rpartition('/')
  parts = parts_of(module)
  return [f'{around}{slash}{part}/{leaf}' for part in parts] if len(parts) > 1 else []


def _stacked(parts: list[tuple[Array | None, Array]]) -> Array | None:
  if all(value is None for value, _ in parts):
    return None
  return jnp.stack([old if value is None else value for value, old in parts])
