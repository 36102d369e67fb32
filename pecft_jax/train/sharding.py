"""Which device holds what: a mesh, and an ordered table of rules over leaf names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pecft_jax.paths import map_named, named_leaves, shortened


class Rule(NamedTuple):
  """How leaves of some names are split.

  Attributes:
    pattern: regex searched in the leaf's path.
    axes: of the mesh, or None, for the leaf's last axes: a rule for a weight
      so holds for a bank or a stack of it too. Empty: whole on every device.
    optional: leave leaves whole that the axes do not fit, and do not mind if
      there is no leaf of that name.
  """

  pattern: str
  axes: tuple[str | None, ...] = ()
  optional: bool = False


class Layout(NamedTuple):
  """A mesh with the rules for what lies on it.

  Attributes:
    mesh: with at least the axis `data`, which batches are split over.
    rules: for the leaves of state and backbone: `Rule`s, or plain tuples of
      their fields. The first pattern found in a leaf's path decides; a leaf
      that none is found in is whole on every device.
  """

  mesh: Mesh
  rules: tuple[Rule | tuple[Any, ...], ...] = ()


_COLUMNS = r'(attn/(q|k|v|qkv)|mlp/(fc1|gate|up))'  # Linear sites split by their outputs,
_ROWS = r'(attn/out|mlp/(fc2|down))'  # and those after them, split by their inputs.


def tensor_parallel(axis: str = 'model') -> tuple[Rule, ...]:
  """Splits the linear layers of a transformer (Shoeybi et al., 2019, arXiv:1909.08053).

  What methods train follows the weight it adapts: the factor of a low-rank
  update that has the split axis is split, the other is whole. An embedding
  table is split by its rows, the vocabulary.

  Args:
    axis: of the mesh.
  """
  return (
    Rule(rf'{_COLUMNS}/(kernel|b)$', (None, axis), optional=True),
    Rule(rf'{_COLUMNS}/(bias|magnitude|outer|scale|shift)$', (axis,), optional=True),
    Rule(rf'{_ROWS}/(kernel|a)$', (axis, None), optional=True),
    Rule(r'embed/table$', (axis, None), optional=True),
  )


def fsdp(axis: str = 'data') -> tuple[Rule, ...]:
  """Splits every matrix of weights by its rows; each is gathered where it is used.

  Low-rank factors follow their weight. So do the largest statistics that
  methods carry, Gram matrices.

  Args:
    axis: of the mesh; `data` splits the weights over the same devices as the batch.
  """
  return (Rule(r'/(kernel|table|a)$|gram$', (axis, None), optional=True),)


def make_mesh(axes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh with named axes over all devices; `data` alone by default.

  Args:
    axes: sizes by name, such as `{'data': 4, 'model': 2}`; their product is
      the number of devices.

  Raises:
    ValueError: if the sizes do not multiply to the devices there are, or
      there is no axis `data`.
  """
  axes = {'data': jax.device_count()} if axes is None else dict(axes)
  if 'data' not in axes:
    raise ValueError(f"a mesh needs an axis 'data', got {axes}")
  if int(np.prod(list(axes.values()))) != jax.device_count():
    raise ValueError(f'mesh {axes} does not fit {jax.device_count()} devices')
  types = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def one_device() -> Layout:
  """The smallest mesh: the first device alone."""
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
  return Layout(mesh)


def replicated(layout: Layout) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(layout.mesh, P())


def batched(layout: Layout) -> NamedSharding:
  """The leading axis split over `data`."""
  return NamedSharding(layout.mesh, P('data'))


def check_batches(layout: Layout, sizes: Mapping[str, int]) -> None:
  """Holds batch sizes against a mesh.

  Raises:
    ValueError: if `data` does not divide one; names it.
  """
  parts = layout.mesh.shape['data']
  for name, size in sizes.items():
    if size % parts:
      raise ValueError(f"{name} {size} cannot be split over the {parts} devices of axis 'data'")


def tree_shardings(layout: Layout, tree: Any) -> Any:
  """The sharding of each leaf of a (possibly abstract) tree.

  Raises:
    ValueError: if a rule names an axis that the mesh has not; or, unless it is
      optional, splits more axes than a leaf has, or does not divide it.
  """
  rules = _rules(layout)

  def one(name: str, leaf: Any) -> NamedSharding:
    i = _deciding(rules, name)
    axes = () if i is None else _fitted(layout.mesh, name, leaf.shape, rules[i])
    return NamedSharding(layout.mesh, P(*axes))

  return map_named(one, tree)


def check_rules(layout: Layout, *trees: Any) -> None:
  """Refuses rules that decide about no leaf of any tree: most likely misspelt.

  Raises:
    ValueError: names the first such rule that is not optional, and some leaves.
  """
  rules = _rules(layout)
  names = [name for tree in trees for name, _ in named_leaves(tree)]
  used = {_deciding(rules, name) for name in names}
  for i, rule in enumerate(rules):
    if i not in used and not rule.optional:
      raise ValueError(
        f'sharding rule {rule.pattern!r} decides about no leaf; leaves: {shortened(names)}'
      )


def _rules(layout: Layout) -> list[Rule]:
  plain: Any = layout.rules  # Rules may be written as bare tuples.
  return [Rule(*rule) for rule in plain]


def _deciding(rules: Sequence[Rule], name: str) -> int | None:
  return next((i for i, rule in enumerate(rules) if re.search(rule.pattern, name)), None)


def _fitted(mesh: Mesh, name: str, shape: Sequence[int], rule: Rule) -> tuple[str | None, ...]:
  """The rule's axes for a leaf, as many as it has."""
  unknown = {axis for axis in rule.axes if axis is not None} - set(mesh.axis_names)
  if unknown:
    raise ValueError(
      f'sharding rule {rule.pattern!r} names {sorted(unknown)}; mesh axes: {mesh.axis_names}'
    )
  full = (None,) * (len(shape) - len(rule.axes)) + rule.axes
  fits = len(full) == len(shape) and all(
    axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(shape, full, strict=True)
  )
  if fits:
    return full
  if rule.optional:
    return ()
  sizes = {axis: mesh.shape[axis] for axis in rule.axes if axis is not None}
  raise ValueError(
    f'sharding rule {rule.pattern!r} with axes {rule.axes} does not fit {name!r} of shape '
    f'{tuple(shape)}; mesh: {sizes}'
  )
