"""The flags that say how to use devices."""

from collections.abc import Sequence
from typing import Any


def parse_mesh(text: str) -> dict[str, int]:
  """`data=4,model=2` to sizes by axis. Raises ValueError for anything else."""
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    if not axis.strip() or not size.strip().isdigit():
      raise ValueError(f'expected a mesh as data=4,model=2, got {text!r}')
    sizes[axis.strip()] = int(size)
  return sizes


def layout_of(mesh: str, fsdp: bool, written: Sequence[str] = (), own: Sequence[Any] = ()) -> Any:
  """The mesh and the sharding rules of the flags; None for the first device alone.

  Args:
    mesh: as in `data=4,model=2`, or empty.
    fsdp: whether weights are split over `data`.
    written: rules of the command line, before all others.
    own: rules of the experiment, before the tables; of no use without a mesh.

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
  return sharding.Layout(sharding.make_mesh(axes), rules_of(axes, fsdp, written, own))


def rules_of(
  axes: dict[str, int], fsdp: bool, written: Sequence[str] = (), own: Sequence[Any] = ()
) -> tuple[Any, ...]:
  """The table of rules for a mesh with these axes; other arguments as those of `layout_of`."""
  from pecft_jax.devices import rules

  tables = [rules.split_memory('data', 'model' if 'model' in axes else None)]
  tables += [rules.tensor_parallel('model', 'data' if fsdp else None)] if 'model' in axes else []
  tables += [rules.fsdp()] if fsdp else []
  return (*map(rules.read_rule, written), *own, *(rule for each in tables for rule in each))
