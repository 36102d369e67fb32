"""Meshes, and the sharding of trees on them by an ordered table of rules."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pecft_jax.axes import Axes, declared_axes
from pecft_jax.devices.rules import Rule, decided, written
from pecft_jax.paths import shortened
from pecft_jax.text import size as in_bytes


class Layout(NamedTuple):
  """A mesh with its sharding rules.

  Attributes:
    mesh: with at least the axis `data`, which batches are sharded over.
    rules: for the leaves of state and backbone: `Rule`s, or plain tuples of
      their fields. The first whose pattern is found in a leaf's path decides;
      a leaf that no rule decides about is replicated. Your own rules
      go before a table that they override.
  """

  mesh: Mesh
  rules: tuple[Rule | tuple[Any, ...], ...] = ()


def make_mesh(axes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh with named axes over all devices; `data` alone by default.

  Args:
    axes: sizes by name, such as `{'data': 4, 'model': 2}`; their product is
      the number of devices.

  Raises:
    ValueError: if the sizes do not multiply to the devices there are, or
      there is no axis `data`.

  >>> make_mesh({'data': 1}).shape['data']
  1
  """
  axes = {'data': jax.device_count()} if axes is None else dict(axes)
  if 'data' not in axes:
    raise ValueError(f"a mesh needs an axis 'data', got {axes}")
  if int(np.prod(list(axes.values()))) != jax.device_count():
    raise ValueError(f'mesh {axes} does not fit {jax.device_count()} devices')
  types = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def one_device() -> Layout:
  """A mesh of the first device alone.

  >>> one_device().mesh.size
  1
  """
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
  return Layout(mesh)


def replicated(layout: Layout) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(layout.mesh, P())


def batched(layout: Layout) -> NamedSharding:
  """The leading axis sharded over `data`."""
  return NamedSharding(layout.mesh, P('data'))


def stacked_sharding(sharding: NamedSharding) -> NamedSharding:
  """The sharding of a stack of such arrays: its leading axis is sharded over `seed`, if any."""
  lead = _seed_axis(sharding.mesh)
  return NamedSharding(sharding.mesh, P(lead, *sharding.spec))


def seed_axis(layout: Layout) -> str | None:
  """The mesh's axis that seeds are sharded over, if it has one."""
  return _seed_axis(layout.mesh)


def _seed_axis(mesh: Any) -> str | None:
  return 'seed' if 'seed' in mesh.axis_names else None


def place(tree: Any, shardings: Any) -> Any:
  """Puts arrays on their devices; each process handles its own devices only.

  Args:
    tree: of host arrays, or of arrays on one device, equal in all processes.
    shardings: of its leaves.
  """

  def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

  return jax.tree.map(put, tree, shardings)


def batch_part(layout: Layout) -> tuple[int, int]:
  """Which part of each batch this process needs: its index, and the number of parts.

  Processes that differ only along other axes than `data` need the same part.

  Raises:
    ValueError: if this process's rows of a batch are not contiguous on the mesh.
  """
  size = layout.mesh.shape['data']
  places = batched(layout).addressable_devices_indices_map((size,)).values()
  rows = sorted({where[0].indices(size)[0] for where in places if where is not None})
  count, rest = divmod(size, len(rows))
  if rest or rows != list(range(rows[0], rows[0] + len(rows))) or rows[0] % len(rows):
    raise ValueError(
      f'the mesh gives process {jax.process_index()} the parts {rows} of {size} of each batch; '
      "expected adjacent parts: order its devices by process along axis 'data'"
    )
  return rows[0] // len(rows), count


def check_batches(layout: Layout, sizes: Mapping[str, int]) -> None:
  """Checks batch sizes against a mesh.

  Raises:
    ValueError: if `data` does not divide one; names it.
  """
  parts = layout.mesh.shape['data']
  for name, size in sizes.items():
    if size % parts:
      raise ValueError(f"{name} {size} cannot be split over the {parts} devices of axis 'data'")


def traced_on(layout: Layout, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that the mesh is set while it is traced, to constrain activations."""

  @functools.wraps(fn)
  def run(*args: Any) -> Any:
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
      return fn(*args)

  return run


def tree_shardings(layout: Layout, tree: Any) -> Any:
  """The sharding of each leaf of a (possibly abstract) tree.

  Raises:
    ValueError: if a rule, unless it is optional, names an axis that the mesh
      does not have, splits more axes than a leaf has, or does not divide it.
  """
  rules = _rules(layout)

  def one(name: str, leaf: Any, declared: Axes) -> NamedSharding:
    axes = decided(layout.mesh, rules, name, leaf.shape, declared)[1]
    return NamedSharding(layout.mesh, P(*axes))

  leaves = [one(*leaf) for leaf in declared_axes(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def check_rules(layout: Layout, *trees: Any) -> None:
  """Refuses rules that decide about no leaf of any tree, which are most likely misspelt.

  Raises:
    ValueError: names the first such rule that is not optional, and some leaves.
  """
  rules = _rules(layout)
  leaves = [leaf for tree in trees for leaf in declared_axes(tree)]
  used = {decided(layout.mesh, rules, name, leaf.shape, axes)[0] for name, leaf, axes in leaves}
  for i, rule in enumerate(rules):
    if i not in used and not rule.optional:
      names = shortened(name for name, _, _ in leaves)
      raise ValueError(f'sharding rule {rule.pattern!r} decides about no leaf; leaves: {names}')


def describe_rules(layout: Layout, *trees: Any) -> str:
  """The table of rules as text, with the number of leaves that each decides about.

  Args:
    layout: mesh and rules.
    *trees: of arrays or of their shapes: state and backbone.

  Returns:
    One line per rule, in order, with the bytes of its leaves in all and per device.

  >>> import jax.numpy as jnp
  >>> layout = Layout(one_device().mesh, (Rule('kernel$', ('data', None)),))
  >>> print(describe_rules(layout, {'kernel': jnp.ones((4, 2)), 'bias': jnp.ones(2)}))
  data 1
   leaves      bytes   a device  axes              pattern
        1       32 B       32 B  data, -           kernel$
        1        8 B        8 B  whole             all others
  """
  rules = _rules(layout)
  found: dict[int | None, list[float]] = {i: [0, 0, 0] for i in [*range(len(rules)), None]}
  for name, leaf, declared in (leaf for tree in trees for leaf in declared_axes(tree)):
    i, axes = decided(layout.mesh, rules, name, leaf.shape, declared)
    parts = math.prod(layout.mesh.shape[axis] for axis in axes if axis is not None)
    size = leaf.size * leaf.dtype.itemsize
    found[i] = [old + new for old, new in zip(found[i], (1, size, size / parts), strict=True)]
  heading = ', '.join(f'{axis} {size}' for axis, size in layout.mesh.shape.items())
  lines = [f'{heading}', f'{"leaves":>7} {"bytes":>10} {"a device":>10}  {"axes":16}  pattern']
  for i, (count, size, share) in found.items():
    axes = 'whole' if i is None else written(rules[i].axes)
    name = 'all others' if i is None else rules[i].pattern or 'declared'
    lines.append(f'{count:7} {in_bytes(size):>10} {in_bytes(share):>10}  {axes:16}  {name}')
  return '\n'.join(lines)


def _rules(layout: Layout) -> list[Rule]:
  plain: Any = layout.rules  # Rules may be written as bare tuples.
  return [Rule(*rule) for rule in plain]
