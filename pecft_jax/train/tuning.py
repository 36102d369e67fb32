"""Settings of a method chosen by one protocol, the same for all methods that are compared."""

import itertools
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pecft_jax.arguments import checked
from pecft_jax.data import validation
from pecft_jax.files import write_json
from pecft_jax.local import work_directory
from pecft_jax.measures import Measure
from pecft_jax.train.context import NonFiniteLoss
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.options import RunOptions
from pecft_jax.train.running import DEFAULTS, run


class Trial(NamedTuple):
  """One choice of settings, and what it led to.

  Attributes:
    choice: the settings, by name.
    score: average over the held-out examples of the first tasks, after the last of them, in the
      measure of the problem; None where training diverged.
    results: content of the run's results.json; None where training diverged.
  """

  choice: Mapping[str, Any]
  score: float | None
  results: Mapping[str, Any] | None


class Tuned(NamedTuple):
  """The outcome of `tuned`.

  Attributes:
    choice: of the best trial.
    at_edge: names of the choice's numbers that are the lowest or the highest of those tried, with
      at least three tried: a wider range might do better.
    trials: all, in the order in which they were given.
    protocol: how they were compared, as JSON.
  """

  choice: Mapping[str, Any]
  at_edge: tuple[str, ...]
  trials: tuple[Trial, ...]
  protocol: Mapping[str, Any]


def combinations(**values: Sequence[Any]) -> list[dict[str, Any]]:
  """All combinations of values by name, the last name changing fastest.

  Args:
    **values: the values of each name.

  Raises:
    ValueError: for a name without values.

  >>> combinations(rate=(1e-3, 1e-2), strength=(1, 10))[1]
  {'rate': 0.001, 'strength': 10}
  """
  if empty := [name for name, each in values.items() if not each]:
    raise ValueError(f'expected at least one value for each name, got none for {empty}')
  return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


@checked
def tuned(
  experiment_of: Callable[[Mapping[str, Any]], Experiment],
  choices: Iterable[Mapping[str, Any]],
  workdir: str | pathlib.Path | None = None,
  options: RunOptions = DEFAULTS,
  *,
  tasks: int = 3,
  share: float = 0.2,
) -> Tuned:
  """Chooses among settings on the first tasks' training data, a share of which is held out.

  No test example is read, nor any example of a later task: what is chosen so can be reported on
  the whole sequence. Every choice is one run with the experiment's own seed; the score is the
  average over the first tasks after the last of them, so that forgetting and drift count. The
  highest score wins (the lowest, where lower is better), of equal ones the first. Methods are
  compared fairly where each has equally many choices. A single task hides drift: a rate that is
  best on the first task alone is often too high for a sequence.

  Args:
    experiment_of: makes the whole experiment, with the settings of a choice. Its scenario is
      replaced by `pecft_jax.data.validation`, its references are left out.
    choices: settings by name, as `combinations` makes them; no two equal.
    workdir: holds a work directory for each trial, and tuned.json. Trials that have ended there
      are read, one that was interrupted goes on. None: nothing is kept.
    options: of each run.
    tasks: how many of the first tasks.
    share: of each class's training examples that is held out.

  Raises:
    ValueError: for no choices, equal ones, or a method that diverged with each of them; and as
      `run` and `validation`.
    Stopped: as `run`.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import Training, sgd
  >>> images = np.arange(8 * 64, dtype=np.uint8).reshape(8, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1, 2, 2, 3, 3])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> def experiment_of(choice):
  ...   method = continual.simplecil(model.backbone, scenario.capacity)
  ...   training = Training(sgd(choice['rate']), epochs=1, batch_size=2, eval_batch_size=2)
  ...   return Experiment(model, scenario, method, training)
  >>> quiet = RunOptions(console=Console(quiet=True))
  >>> found = tuned(experiment_of, combinations(rate=(0.1, 1.0)), options=quiet)
  >>> found.choice, len(found.trials)
  ({'rate': 0.1}, 2)
  """
  choices = [dict(choice) for choice in choices]
  _check(choices)
  directory = None if workdir is None else work_directory(workdir)
  trials, measure = [], None
  for i, choice in enumerate(choices):
    experiment = experiment_of(choice)
    measure = experiment.method.capacity.problem.measure
    place = None if directory is None else directory / f'trial_{i}'
    trials.append(_tried(experiment, choice, place, options, tasks, share))
  assert measure is not None
  best = _best(trials, measure)
  found = Tuned(
    best.choice,
    _at_edge(best.choice, choices),
    tuple(trials),
    {'tasks': tasks, 'held_out': share, 'trials': len(trials), 'measure': measure.name},
  )
  if directory is not None:
    brief = [{'choice': each.choice, 'score': each.score} for each in trials]
    write_json(directory / 'tuned.json', {**found._asdict(), 'trials': brief})
  return found


def _tried(
  experiment: Experiment,
  choice: dict[str, Any],
  place: pathlib.Path | None,
  options: RunOptions,
  tasks: int,
  share: float,
) -> Trial:
  first = validation(experiment.scenario, tasks, share)
  try:
    results = run(experiment.replace(scenario=first, references={}), place, options)
  except NonFiniteLoss:
    return Trial(choice, None, None)
  key = experiment.method.capacity.problem.measure.key
  return Trial(choice, results['metrics'][f'average_{key}'], results)


def _best(trials: Sequence[Trial], measure: Measure) -> Trial:
  ended = [each for each in trials if each.score is not None and math.isfinite(each.score)]
  if not ended:
    raise ValueError(
      f'training diverged with each of {len(trials)} choices: '
      f'{"; ".join(str(each.choice) for each in trials)}'
    )
  return max(ended, key=lambda each: measure.sign * (each.score or 0.0))


def _at_edge(choice: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  is_number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
  edges = []
  for name, value in choice.items():
    tried = {each[name] for each in choices if is_number(each.get(name))}
    if is_number(value) and len(tried) >= 3 and value in (min(tried), max(tried)):
      edges.append(name)
  return tuple(edges)


def _check(choices: Sequence[Mapping[str, Any]]) -> None:
  if not choices:
    raise ValueError('expected at least one choice of settings, got none')
  for i, choice in enumerate(choices):
    if choice in choices[:i]:
      raise ValueError(f'expected choices that differ, got {choice} twice')
