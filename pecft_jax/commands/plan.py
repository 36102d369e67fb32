"""`pecft plan`."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich.console import Console

from pecft_jax.commands.files import find_experiment, load_experiment, made, parse_flags
from pecft_jax.commands.meshes import parse_mesh, rules_of, split_of
from pecft_jax.text import size


@dataclasses.dataclass(frozen=True)
class PlanFlags:
  """Flags of `pecft plan`: the devices that it is for."""

  mesh: str = ''
  """Devices by axis, as in data=4,model=2, none of which needs to be present; one by default."""
  fsdp: bool = False
  """Shard weights over the data axis, too; needs --mesh."""
  chip: str = ''
  """One of v4, v5e, v5p, v6e (TPUs), a100, h100, h200; all of them by default."""
  frozen_dtype: Literal['', 'float32', 'bfloat16', 'float16'] = ''
  """In which the weights of the backbone are stored; as the experiment loads them by default."""
  utilisation: float = 0.5
  """Share of a chip's roofline that is assumed to be reached."""
  debug: bool = False
  """Show the whole traceback of an error."""


def plan_file(path: str, args: Sequence[str], console: Console) -> int:
  function = load_experiment(find_experiment(path))
  values, flags = parse_flags(function, args, f'pecft plan {path}', PlanFlags)
  from pecft_jax.plan import CHIPS, abstract_layout, find_chip, plan_experiment
  from pecft_jax.plan.page import print_plan
  from pecft_jax.plan.roofline import check_utilisation

  check_utilisation(flags.utilisation)
  chips = [find_chip(flags.chip)] if flags.chip else list(CHIPS.values())
  axes = parse_mesh(flags.mesh) if flags.mesh else {}
  if flags.fsdp and not axes:
    raise ValueError('--fsdp says how to use a mesh: give one, as in --mesh data=8')
  experiment = made(function, values)
  split = split_of(experiment.backbone)
  rules = rules_of(axes, flags.fsdp, own=experiment.rules, split=split) if axes else ()
  layout = abstract_layout(axes or {'data': 1}, rules)
  found = plan_experiment(experiment, layout, flags.frozen_dtype or None)
  grown = _growth(function, values, experiment)
  print_plan(found, chips, utilisation=flags.utilisation, growth=grown, console=console)
  return 0


def _growth(
  function: Callable[..., Any], values: dict[str, Any], experiment: Any
) -> dict[int, str]:
  """The bytes carried with room for 1, 10, 100 and the scenario's own number of tasks, in words."""
  from pecft_jax.plan import carried_bytes

  room = lambda each: carried_bytes(each.method, each.frozen)
  own = experiment.method.capacity.tasks
  exact = {own: room(experiment)}
  for tasks in (1, 10, 100) if 'tasks' in values else ():
    # Data need not be divisible into so many tasks.
    with contextlib.suppress(ValueError, ArithmeticError, LookupError):
      exact.setdefault(tasks, room(made(function, {**values, 'tasks': tasks})))
  text = {tasks: size(carried) for tasks, carried in exact.items()}
  if len(exact) > 1:
    low, high = min(exact), max(exact)
    each = (exact[high] - exact[low]) / (high - low)
    for tasks in {1, 10, 100} - set(exact):
      line = exact[low] + each * (tasks - low)
      text[tasks] = f'{size(line)}, along the line through {low} and {high}'
  return dict(sorted(text.items()))
