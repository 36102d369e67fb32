"""Bytes of device memory by use."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from pecft_jax.devices.sharding import Layout, Rule, tree_shardings
from pecft_jax.paths import named_leaves
from pecft_jax.typing import Params, TrainState


class Memory(NamedTuple):
  """Bytes on each device while it trains.

  All but the last is exact. Activations are the peak of what a step stores between its inputs and
  its gradients, see `pecft_jax.plan.cost.temporaries`.

  Attributes:
    frozen: weights of the backbone.
    trained: what the optimizer updates: delta, head, ...
    optimizer: its state.
    continual: what the method carries besides.
    record: the current task, counters and keys.
    batch: one batch.
    gradients: of `trained`, laid out like it.
    gathered: the largest weight that is sharded over `data`, gathered where it is used.
    activations: an estimate. Programs compiled for the CPU hold 0.95 to 1.35 times as much.
  """

  frozen: int
  trained: int
  optimizer: int
  continual: int
  record: int
  batch: int
  gradients: int
  gathered: int
  activations: int

  @property
  def total(self) -> int:
    """The sum. All gradients count, although some are not computed yet when activations peak."""
    return sum(self)


def abstract_layout(axes: Mapping[str, int], rules: tuple[Rule, ...] = ()) -> Layout:
  """A layout over devices that need not exist: for shapes only.

  Args:
    axes: sizes of the mesh by axis.
    rules: of sharding, as in `Layout`.

  Raises:
    ValueError: if there is no axis `data`.

  >>> abstract_layout({'data': 64, 'model': 4}).mesh.size
  256
  """
  if 'data' not in axes:
    raise ValueError(f"a mesh needs an axis 'data', got {dict(axes)}")
  types = (AxisType.Auto,) * len(axes)
  mesh: Any = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=types)
  return Layout(mesh, rules)


def stored_as(params: Params, dtype: Any | None) -> Params:
  """The shapes of a backbone's weights, floating-point ones in another dtype where one is given.

  Args:
    params: arrays, or their shapes.
    dtype: of floating-point leaves; None keeps theirs.

  >>> import jax.numpy as jnp
  >>> stored_as({'w': jnp.ones(3)}, jnp.bfloat16)['w'].dtype
  dtype(bfloat16)
  """

  def one(leaf: Any) -> jax.ShapeDtypeStruct:
    change = dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype) if change else leaf.dtype)

  return jax.tree.map(one, params)


def shard_bytes(tree: Any, shardings: Any) -> int:
  """Bytes of a tree on each device."""
  leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
  return sum(
    math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize
    for leaf, sharding in leaves
  )


def held(layout: Layout, state: TrainState, frozen: Params) -> dict[str, int]:
  """The entries of `Memory` that are on each device all the time, by name."""
  shardings = tree_shardings(layout, state)
  part = lambda name: shard_bytes(getattr(state, name), getattr(shardings, name))
  return {
    'frozen': shard_bytes(frozen, tree_shardings(layout, frozen)),
    'trained': part('params'),
    'optimizer': part('opt_state'),
    'continual': part('memory'),
    'record': part('task') + part('step') + part('key'),
  }


class SplitLeaf(NamedTuple):
  """A leaf of a tree with the mesh axes that it is sharded over, from first axis to last."""

  name: str
  shape: tuple[int, ...]
  bytes: int  # Before sharding.
  axes: tuple[str | None, ...]


def splits(layout: Layout, tree: Any) -> list[SplitLeaf]:
  """All leaves with the axes that they are sharded over."""
  shardings = jax.tree.leaves(tree_shardings(layout, tree))
  return [
    SplitLeaf(name, tuple(leaf.shape), leaf.size * leaf.dtype.itemsize, tuple(sharding.spec))
    for (name, leaf), sharding in zip(named_leaves(tree), shardings, strict=True)
  ]


def gathered(layout: Layout, frozen: Params) -> int:
  """Bytes of the largest weight that is sharded over `data`, whole except for other axes.

  Of layers that are stacked (`blocks`), one.
  """
  sizes = dict(layout.mesh.shape)
  whole = [0]
  for leaf in splits(layout, frozen):
    if 'data' in leaf.axes and sizes['data'] > 1:
      others = math.prod(sizes[a] for a in leaf.axes if a not in {None, 'data'})
      layers = leaf.shape[0] if leaf.name.startswith('blocks/') else 1
      whole.append(leaf.bytes // others // layers)
  return max(whole)
