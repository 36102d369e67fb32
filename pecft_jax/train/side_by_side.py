"""Which experiments can be run side by side, as one compiled program."""

import re
from collections.abc import Mapping
from typing import Any

from pecft_jax.data import Scenario
from pecft_jax.train.experiment import Experiment

# What a directory of one experiment may be called: none of a run's own files.
_NAME = r'[A-Za-z0-9][A-Za-z0-9_.,=-]*'
_TAKEN = ('checkpoints', 'references', 'parts', 'damaged')
_SHARED = ('model', 'method', 'training', 'references', 'identity', 'labels', 'rules')


def check_side_by_side(experiments: Mapping[str, Experiment]) -> None:
  """Checks that experiments share all but their seeds and the order of their data.

  Args:
    experiments: by the names of their directories.

  Raises:
    ValueError: otherwise, or for names that cannot be directories beside each other.
  """
  if len(experiments) < 2:
    raise ValueError(f'expected at least two experiments, got {list(experiments)}')
  for name in experiments:
    if not re.fullmatch(_NAME, name) or name in _TAKEN or '.' in name[-1:]:
      raise ValueError(
        f'expected names of directories, of letters, digits and _.,=- and none of {_TAKEN}, '
        f'got {name!r}'
      )
  folded = [name.casefold() for name in experiments]
  if len({*folded}) < len(folded):
    raise ValueError(f'expected names that differ in more than case, got {list(experiments)}')
  (first, one), *others = experiments.items()
  for name, other in others:
    for field in _SHARED:
      mine, its = getattr(one, field), getattr(other, field)
      if mine is not its and not (field not in ('model', 'method') and mine == its):
        raise ValueError(
          f'{name!r} has another {field} than {first!r}: expected the same object in all; make '
          'the experiments from one by replace(scenario=..., seed=...)'
        )
    there, here = _form(one.scenario), _form(other.scenario)
    for key, value in there.items():
      if here[key] != value:
        raise ValueError(
          f'{first!r} and {name!r} differ in the {key}, {value} and {here[key]}: orders side by '
          'side need tasks of equal sizes; cut classes to one size with data.first_per_class, or '
          'run the orders one by one'
        )


def _form(scenario: Scenario) -> dict[str, Any]:
  """What the shapes of a run's arrays follow from."""
  return {
    'kind': scenario.kind,
    'boundaries': scenario.boundaries,
    'number of classes': len(scenario.class_order),
    'outputs of each task': [task.classes for task in scenario.tasks],
    'training examples of each task': [len(task.train.rows) for task in scenario.tasks],
    'test examples of each task': [len(task.test.rows) for task in scenario.tasks],
    'probes': [(probe.name, len(probe.split.rows)) for probe in scenario.probes],
  }
