"""Groups runs that differ only in their seed, and says what cannot be compared."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.report import facts, labels
from pecft_jax.report.bounds import standing
from pecft_jax.report.read import Run, read_run
from pecft_jax.text import listed

# Parts of config.json that do not make another experiment: how it was started and with which
# seeds, where it ran, and what was run beside it. The data and weights are in the identity.
_ASIDE = (
  'command', 'references', 'identity', 'seeds_together', 'orders_together', 'files', 'accepted',
  'environment', 'resumed',
)  # fmt: skip
_VOLATILE = ('seed', 'workdir', 'data_dir', 'weights', 'bounds', 'single_task')
_ROOM = 34  # Longest label beside a figure, in letters.
_IDENTITY = {
  'benchmark': 'benchmark',
  'split_digest': 'split digest',
  'class_order': 'class order',
  'data_sha256': 'sha256 of the data',
  'backbone': 'backbone',
  'backbone_sha256': 'backbone sha256',
  'value_range': 'value range',
}


class Group(NamedTuple):
  """Finished runs of one experiment, one for each seed."""

  title: str  # Method and wrappers.
  peft: str
  settings: str  # How it differs from groups of the same method and PEFT; often empty.
  label: str  # What differs between the groups, on one line.
  runs: tuple[Run, ...]  # By seed.

  def values(self, read: Callable[[Run], float | None]) -> list[float]:
    """The values that `read` finds in the runs, without None."""
    found = [read(run) for run in self.runs]
    return [value for value in found if value is not None]


class Comparison(NamedTuple):
  """The content of the page of a comparison."""

  groups: tuple[Group, ...]  # The best average first.
  warnings: tuple[str, ...]  # Reasons against comparing.
  notes: tuple[str, ...]  # What is left out, what is uncertain.


def compare(dirs: Iterable[str | Path]) -> Comparison:
  """Reads work directories and groups the finished ones.

  Raises:
    ValueError: without any directory, or where one cannot be read.
  """
  runs = [read_run(path) for path in dirs]
  if not runs:
    raise ValueError('expected at least one work directory to compare, got none')
  notes = [
    f'Left out: {run.title} in {run.path}, which has finished {run.finished} of {run.total} tasks'
    for run in runs
    if not run.done
  ]
  members: dict[str, list[Run]] = {}
  for run in runs:
    if run.done:
      members.setdefault(_key(run), []).append(run)
  groups = _named([sorted(group, key=_seed) for group in members.values()])
  groups.sort(key=lambda group: -group.runs[0].measure.sign * mean(group.values(final_average)))
  return Comparison(tuple(groups), tuple(_unlike(groups)), tuple(notes + _uncertain(groups)))


def row_names(groups: Sequence[Group]) -> list[str]:
  """Names for figures: labels, or numbers of rows and titles where labels leave no room."""
  if all(len(group.label) <= _ROOM for group in groups):
    return [group.label for group in groups]
  cut = lambda text: text if len(text) <= _ROOM else f'{text[: _ROOM - 1]}…'
  return [f'{number} {cut(group.title)}' for number, group in enumerate(groups, 1)]


def final_average(run: Run) -> float:
  """The average over all tasks in the end."""
  return float(run.curve()[-1])


def mean(values: list[float]) -> float:
  return float(np.mean(values))


def deviation(values: list[float]) -> float | None:
  """Sample standard deviation (divided by n - 1); None for one value."""
  return float(np.std(values, ddof=1)) if len(values) > 1 else None


def gained(run: Run) -> float | None:
  """How much better than the run's own sequential fine-tuning."""
  return standing(run).gained


def closed(run: Run) -> float | None:
  """Share of the gap between the run's own bounds that it closes."""
  return standing(run).closed


def _seed(run: Run) -> str:
  return f'{run.results.get("seed", "")!s:>20}'  # Numbers in their order, then names in theirs.


def _stable(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings by their dotted name, without those that seeds of one experiment may differ in."""
  kept = {name: value for name, value in settings.items() if name not in _ASIDE}
  return {
    name: value
    for name, value in facts.flat(kept).items()
    if name.rsplit('.', 1)[-1] not in _VOLATILE
  }


def _peft(run: Run) -> str:
  return str(run.results.get('peft') or '')


def _key(run: Run) -> str:
  """Equal for runs that differ only in their seed."""
  identity, config = _stable(run.results.get('identity') or {}), _stable(run.config)
  key = [run.title, _peft(run), run.scenario, run.measure.name, run.total, identity, config]
  return json.dumps(key, sort_keys=True, default=str)


def _named(members: list[list[Run]]) -> list[Group]:
  """Names groups by what differs between them, and by nothing else."""
  firsts = [runs[0] for runs in members]
  one_peft = len({_peft(run) for run in firsts}) <= 1
  groups = []
  for runs in members:
    first = runs[0]
    alike = [run for run in firsts if (run.title, _peft(run)) == (first.title, _peft(first))]
    settings = labels.differing(_stable(first.config), [_stable(run.config) for run in alike])
    peft = _peft(first)
    parts = (first.title, '' if one_peft else peft, settings)
    label = ' · '.join(part for part in parts if part)
    groups.append(Group(first.title, peft, settings, label, tuple(runs)))
  return groups


def _unlike(groups: list[Group]) -> list[str]:
  """One line for each part of the identity in which the groups differ."""
  out = []
  runs = [(group, run) for group in groups for run in group.runs]
  readers = {
    'scenario': lambda run: run.scenario,
    'measure': lambda run: run.measure.name,
    'number of tasks': lambda run: run.total,
  }
  for key, title in _IDENTITY.items():
    readers[title] = lambda run, key=key: (run.results.get('identity') or {}).get(key)
  for title, read in readers.items():
    found: dict[str, set[str]] = {}
    for group, run in runs:
      value = read(run)
      # Whole values are compared; what is shown of them may be cut.
      exact = json.dumps(value, sort_keys=True, default=str)
      found.setdefault(exact, set()).add(group.label)
    if len(found) > 1:
      parts = [
        f'{"not recorded" if exact == "null" else listed(json.loads(exact), 6)} '
        f'({"; ".join(sorted(names))})'
        for exact, names in found.items()
      ]
      out.append(f'{title}: ' + ' against '.join(parts))
  return out


def _uncertain(groups: list[Group]) -> list[str]:
  out = []
  for group in groups:
    seeds = [str(run.results.get('seed')) for run in group.runs]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
      which = ', '.join(twice)
      out.append(f'Seed {which} was run more than once; too little spread: {group.label}')
  single = [group.label for group in groups if len(group.runs) == 1]
  if single:
    out.append(f'One seed only, so no spread is known: {"; ".join(single)}')
  return out
