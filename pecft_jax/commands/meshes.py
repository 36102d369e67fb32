"""The flags that say how to use devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Both import jax, which the help of a command does not need.
  from pecft_jax.axes import LayerSplit
  from pecft_jax.typing import Backbone


def parse_mesh(text: str) -> dict[str, int]:
  """`data=4,model=2` to sizes by axis.

  Raises:
    ValueError: for anything else, an axis that comes twice, or a size of 0.
  """
  sizes: dict[str, int] = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    axis, size = axis.strip(), size.strip()
    if not axis or not (size.isascii() and size.isdigit()) or not int(size):
      raise ValueError(f'expected a mesh as data=4,model=2, got {text!r}')
    if axis in sizes:
      raise ValueError(f'axis {axis!r} comes twice in the mesh {text!r}')
    sizes[axis] = int(size)
  return sizes


def split_of(backbone: Backbone) -> LayerSplit:
  """The sharding of a model's layers: that of its family, or that of usual transformers."""
  from pecft_jax.backbones import FAMILIES
  from pecft_jax.devices.rules import TRANSFORMER

  family = FAMILIES.get(backbone.family)
  return TRANSFORMER if family is None else family.split


def layout_of(
  mesh: str,
  fsdp: bool,
  written: Sequence[str] = (),
  own: Sequence[Any] = (),
  *,
  split: LayerSplit | None = None,
) -> Any:
  """The mesh and the sharding rules of the flags; None for the first device alone.

  Args:
    mesh: as in `data=4,model=2`, or empty.
    fsdp: whether weights are sharded over `data`.
    written: rules of the command line, before all others.
    own: rules of the experiment, before the tables; ignored without a mesh.
    split: of the layers, from `split_of`; that of usual transformers by default.

  Raises:
    ValueError: for a mesh that does not fit the devices, or other flags without one.
  """
  from pecft_jax.devices import sharding

  if not mesh:
    for flag, given in {'fsdp': fsdp, 'rules': written}.items():
      if given:
        raise ValueError(f'--{flag} says how to use a mesh: give one, as in --mesh data=8')
    return None
  axes = parse_mesh(mesh)
  return sharding.Layout(sharding.make_mesh(axes), rules_of(axes, fsdp, written, own, split=split))


def rules_of(
  axes: dict[str, int],
  fsdp: bool,
  written: Sequence[str] = (),
  own: Sequence[Any] = (),
  *,
  split: LayerSplit | None = None,
) -> tuple[Any, ...]:
  """The table of rules for a mesh with these axes; other arguments as those of `layout_of`."""
  from pecft_jax.devices import rules

  tables = [rules.split_memory('data', 'model' if 'model' in axes else None)]
  if 'model' in axes:
    split = rules.TRANSFORMER if split is None else split
    tables += [rules.tensor_parallel('model', 'data' if fsdp else None, split=split)]
  tables += [rules.fsdp()] if fsdp else []
  return (*map(rules.read_rule, written), *own, *(rule for each in tables for rule in each))
