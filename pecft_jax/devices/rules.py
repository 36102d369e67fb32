"""Sharding rules: an ordered table over leaf names that says what is sharded over a mesh."""

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pecft_jax.axes import Axes, LayerSplit
from pecft_jax.paths import matches


class Rule(NamedTuple):
  """The sharding of leaves of some names.

  Attributes:
    pattern: regex searched in the leaf's path.
    axes: of the mesh, or None, for the leaf's last axes: so a rule for a weight
      also holds for a bank or a stack of it; for its first axes if an
      ellipsis follows. Empty: replicated. Or a mapping from axes that
      the leaf's type declares (see `pecft_jax.axes`) to those of the mesh: it
      decides about leaves that have one of them.
    optional: whether to leave to later rules those leaves that the axes do not
      fit (all of them, where the mesh lacks an axis), and to accept that no leaf
      matches.
  """

  pattern: str
  axes: tuple[str | EllipsisType | None, ...] | Mapping[str, str] = ()
  optional: bool = False


# For transformers whose layers have this library's usual names; families declare their own.
TRANSFORMER = LayerSplit(
  columns=r'(attn/(q|k|v|qkv)|mlp/(fc1|gate|up))',
  rows=r'(attn/out|mlp/(fc2|down))',
  tables=r'embed/table',
)


def tensor_parallel(
  axis: str = 'model', gathered: str | None = None, *, split: LayerSplit = TRANSFORMER
) -> tuple[Rule, ...]:
  """Shards the linear layers of a transformer (Shoeybi et al., 2019, arXiv:1909.08053).

  What methods train follows the weight it adapts: arrays whose types declare the split axis, `in`
  or `out`, are sharded, others are replicated. An embedding table is sharded by its rows, the
  vocabulary.

  Args:
    axis: of the mesh.
    gathered: another axis, which matrices are sharded over along their other
      dimension, and gathered from where they are used: for the rest of the
      weights join `fsdp(gathered)`.
    split: which layers of the model are sharded how: `family_of(backbone).split`
      of `pecft_jax.backbones`, or one of your own.

  >>> len(tensor_parallel('model')) > 0
  True
  """
  columns, rows, tables = split
  return (
    Rule(rf'{columns}/kernel$', (gathered, axis), optional=True),
    Rule(rf'{columns}/bias$', (axis,), optional=True),
    Rule(rf'{columns}/', {'out': axis}, optional=True),
    Rule(rf'{rows}/kernel$', (axis, gathered), optional=True),
    Rule(rf'{rows}/', {'in': axis}, optional=True),
    *([Rule(rf'{tables}$', (axis, gathered), optional=True)] if tables else []),
  )


def fsdp(axis: str = 'data') -> tuple[Rule, ...]:
  """Shards every matrix of weights by its rows; each is gathered where it is used.

  What declares the axis `in` of a weight follows it; embedding tables are sharded by their
  columns, and never gathered. Of stacked blocks (`scan=True`) one layer's
  weights at a time are whole, in the forward pass and again in the backward
  pass; of blocks in a loop with `remat=products_and_sums` of `pecft_jax.backbones`,
  while otherwise they stay until the backward pass.

  Args:
    axis: of the mesh; `data` shards the weights over the same devices as the batch.

  >>> len(fsdp('data')) > 0
  True
  """
  return (
    Rule(r'/kernel$', (axis, None), optional=True),
    Rule('', {'in': axis}, optional=True),
    # A batch uses few rows of a table: these move between devices, not the table.
    Rule(r'embed/table$', (None, axis), optional=True),
  )


def split_memory(axis: str = 'data', columns: str | None = None) -> tuple[Rule, ...]:
  """Shards what methods carry from task to task, where it can get large.

  Matrices of second moments by their rows, replay buffers by their slots, sums
  and means of classes by features: what types declare as `row`, `column`,
  `slot` and `feature` (see `pecft_jax.axes`). What belongs to a weight (banks of deltas,
  anchors, Fisher information, moments) follows the rules for that weight.

  Args:
    axis: of the mesh.
    columns: another axis, which matrices of second moments are sharded over, too.

  >>> len(split_memory('data')) > 0
  True
  """
  return (
    Rule('', {'row': axis, **({'column': columns} if columns else {})}, optional=True),
    Rule('', {'slot': axis}, optional=True),
    Rule('', {'feature': axis}, optional=True),
  )


def read_rule(text: str) -> Rule:
  """A rule as written on a command line: `PATTERN=axis,axis`.

  An axis is `-` where nothing is sharded, `...` ends the first ones; no axes at
  all keep the leaf whole: `head/kernel$=model,-`, `buffer/items/=data,...`, `gram$=`.

  Raises:
    ValueError: for anything else.
  """
  pattern, equals, axes = text.rpartition('=')
  names = [name.strip() for name in axes.split(',')] if axes.strip() else []
  try:
    matches(pattern, '')
  except ValueError as error:
    raise ValueError(f'sharding rule {text!r}: {error}') from error
  if not pattern or not equals or not all(names) or names.count('...') > 1:
    raise ValueError(f'expected a sharding rule as PATTERN=axis,axis, got {text!r}')
  given: dict[str, Any] = {'-': None, '...': ...}
  return Rule(pattern, tuple(given.get(name, name) for name in names))


def written(axes: Sequence[Any] | Mapping[str, str]) -> str:
  """The axes of a rule as text, as `read_rule` takes them; declared axes as `in: data`."""
  if isinstance(axes, Mapping):
    return ', '.join(f'{name}: {axis}' for name, axis in axes.items())
  return ', '.join('-' if a is None else '...' if a is ... else a for a in axes) or 'whole'


def decided(
  mesh: Mesh, rules: Sequence[Rule], name: str, shape: Sequence[int], declared: Axes = ()
) -> tuple[int | None, tuple[str | None, ...]]:
  """Which rule decides about a leaf, None if none does, and the axes that it is sharded over.

  Args:
    mesh: of devices, or of shapes alone.
    rules: in order.
    name: path of the leaf.
    shape: of the leaf.
    declared: the axes that its type declares.

  Raises:
    ValueError: if a rule, unless it is optional, does not fit.
  """
  for i, rule in enumerate(rules):
    if not matches(rule.pattern, name):
      continue
    axes = _fitted(mesh, name, shape, rule, declared)
    if axes is not None:
      return i, axes
  return None, ()


def _fitted(
  mesh: Mesh, name: str, shape: Sequence[int], rule: Rule, declared: Axes
) -> tuple[str | None, ...] | None:
  """The rule's axes for a leaf, as many as it has; None where an optional rule does not fit."""
  axes = rule.axes
  if isinstance(axes, Mapping):
    if not axes.keys() & {axis for axis in declared if isinstance(axis, str)}:
      return None
    of = {**axes, ...: ...}
    axes = tuple(of.get(axis) for axis in declared)
  named = [axis for axis in axes if isinstance(axis, str)]
  unknown = sorted(set(named) - set(mesh.axis_names))
  if unknown and not rule.optional:
    raise ValueError(
      f'sharding rule {rule.pattern!r} names {unknown}; mesh axes: {mesh.axis_names}'
    )
  given = axes if ... in axes else (..., *axes)
  at = given.index(...)
  before: Any = given[:at]
  after: Any = given[at + 1 :]
  full = (*before, *(None,) * (len(shape) - len(before) - len(after)), *after)
  fits = len(full) == len(shape) and all(
    axis is None or size % mesh.shape.get(axis, 1) == 0
    for size, axis in zip(shape, full, strict=True)
  )
  if not unknown and fits:
    return full if named else ()
  if rule.optional:
    return None
  sizes = {axis: mesh.shape[axis] for axis in named}
  raise ValueError(
    f'sharding rule {rule.pattern!r} with axes {rule.axes} does not fit {name!r} of shape '
    f'{tuple(shape)}; mesh: {sizes}'
  )
