"""Reads a work directory: config.json, metrics.jsonl, results.json and the references beside it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pecft_jax.files import read_json, read_rows
from pecft_jax.local import local_path
from pecft_jax.measures import ACCURACY, Measure, check_measure
from pecft_jax.metrics import average_accuracy, summarise, validate
from pecft_jax.report.recorded import check_results, row_problem

REFERENCES = ('finetune', 'masked_finetune', 'masked_probe', 'joint')  # The bounds, from below.
# A reference that differs in one of these is not a bound of the run.
_SAME = ('benchmark', 'class_order', 'split_digest', 'backbone_sha256', 'value_range')


@dataclasses.dataclass(frozen=True)
class Run:
  """One run, read from its work directory; k finished tasks of T."""

  path: Path
  results: Mapping[str, Any]  # results.json as it is.
  config: Mapping[str, Any]  # config.json; empty where there is none.
  log: tuple[Mapping[str, Any], ...]  # Rows of metrics.jsonl.
  measure: Measure  # The measure on each test set.
  matrix: np.ndarray  # [k, T] of the measure [time, task], NaN where not evaluated.
  task_aware: np.ndarray | None  # [k, T], with the task known, where that was evaluated separately.
  metrics: Mapping[str, float]  # As recorded, completed from the matrix.
  references: Mapping[str, 'Run']  # Readable runs of the bounds, by name in REFERENCES.
  problems: tuple[str, ...] = ()  # What could not be read and was left out.

  @property
  def finished(self) -> int:
    """k, the number of finished tasks."""
    return self.matrix.shape[0]

  @property
  def total(self) -> int:
    """T, the number of tasks in the sequence."""
    return self.matrix.shape[1]

  @property
  def done(self) -> bool:
    """Whether all tasks are finished."""
    return self.results.get('status', 'done') == 'done' and 0 < self.finished == self.total

  @property
  def title(self) -> str:
    """The method with its wrappers, or the run's name, or its directory's."""
    method = self.results.get('method') or self.results.get('name') or self.path.resolve().name
    # The name of a wrapped method usually has its wrappers: derpp(olora).
    wrappers = [str(name) for name in self.results.get('wrappers') or ()]
    return ' + '.join([str(method), *(name for name in wrappers if f'{name}(' not in str(method))])

  @property
  def scenario(self) -> str | None:
    """`class`, `task` or `domain`."""
    scenario = self.results.get('scenario')
    return scenario.get('kind') if isinstance(scenario, Mapping) else scenario

  @property
  def tasks(self) -> tuple[str, ...]:
    """Names of the T tasks, counted from 1 where they are just numbers."""
    names = [str(name) for name in self.results.get('tasks') or ()]
    plain = all(re.fullmatch(r'task[ _-]?\d+', name) for name in names)
    if plain or len(names) != self.total:
      return tuple(f'task {j + 1}' for j in range(self.total))
    return tuple(names)

  def curve(self) -> np.ndarray:
    """Average over the tasks seen after each finished task, [k]."""
    return average_accuracy(self.matrix) if self.finished else np.zeros(0)


def read_run(directory: str | Path) -> Run:
  """Reads a work directory.

  Files other than results.json may be missing, and references may be missing or
  unfinished; a reference that cannot be read is named in `Run.problems`.

  Args:
    directory: a work directory.

  Raises:
    ValueError: without a readable results.json whose accuracy matrix is [time, task].

  >>> directory = Path('runs/ewc')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"method": "ewc", "accuracy_matrix": [[1.0, null], [0.5, 1.0]]}')
  >>> run = read_run(directory)
  >>> run.title, run.matrix.shape, run.metrics['forgetting']
  ('ewc', (2, 2), 0.5)
  """
  path = local_path(directory)
  results = _json(path / 'results.json')
  where = path / 'results.json'
  check_results(results, where)
  axis = results.get('axis')
  if axis is not None and axis != ['time', 'task']:
    raise ValueError(f"{where}: expected axis ['time', 'task'], got {axis}")
  measure = _measure(results.get('measure'), where)
  field = f'{measure.key}_matrix'
  if field not in results:
    raise ValueError(f'{where}: expected a field {field!r}, got {sorted(results)}')
  matrix = _matrix(results[field], results, measure, where)
  aware = results.get(f'task_aware_{field}')
  references, problems = _references(path, results, measure, matrix.shape[1])
  log = path / 'metrics.jsonl'
  rows, damaged = [], []
  for number, row in enumerate(read_rows(log), 1):
    wrong = row_problem(row.value) if row.value is not None else None
    if wrong or row.value is None:
      damaged.append(row.problem or f'{log}, line {number}, is damaged: {wrong}')
    else:
      rows.append(row.value)
  if damaged:
    more = f', and {len(damaged) - 1} more' if len(damaged) > 1 else ''
    problems.append(f'Left out: {damaged[0]}{more}')
  return Run(
    path=path,
    results=results,
    config=_json(path / 'config.json') if (path / 'config.json').exists() else {},
    log=tuple(rows),
    measure=measure,
    matrix=matrix,
    task_aware=None if aware is None else _matrix(aware, results, measure, where),
    metrics=_metrics(matrix, results, measure, where),
    references=references,
    problems=tuple(problems),
  )


def _references(
  path: Path, results: Mapping[str, Any], measure: Measure, total: int
) -> tuple[dict[str, Run], list[str]]:
  """Runs of the bounds that can be read and compared, and why the others cannot."""
  found, problems = {}, []
  ours = results.get('identity') or {}
  for name in REFERENCES:
    beside = path / 'references' / name
    if not (beside / 'results.json').exists():
      continue
    try:
      run = read_run(beside)
    except ValueError as error:
      problems.append(f'Left out: reference {name}: {error}')
      continue
    theirs = run.results.get('identity') or {}
    unlike = [k for k in _SAME if k in ours and k in theirs and ours[k] != theirs[k]]
    unlike += ['the measure'] if run.measure != measure else []
    unlike += ['the number of tasks'] if run.finished and run.total != total else []
    if unlike:
      problems.append(f'Left out: reference {name}, which differs in {", ".join(unlike)}')
    else:
      found[name] = run
  return found, problems


def _json(path: Path) -> dict[str, Any]:
  try:
    return read_json(path)
  except FileNotFoundError:
    raise ValueError(
      f'{path} does not exist; expected a work directory written by `pecft run ... --workdir DIR`'
    ) from None


def _measure(value: Any, where: Path) -> Measure:
  """Accuracy where nothing is recorded; null is no bound."""
  if value is None:
    return ACCURACY
  try:
    low, high = value['low'], value['high']
    ends = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return check_measure(Measure(str(value['name']), *ends, bool(value['higher_is_better'])))
  except (TypeError, KeyError, ValueError) as error:
    raise ValueError(
      f'{where}: expected a measure with {", ".join(Measure._fields)}, got {value}: {error}'
    ) from None


def _matrix(value: Any, results: Mapping[str, Any], measure: Measure, where: Path) -> np.ndarray:
  """[k, T], with no row where nothing is finished yet."""
  empty = isinstance(value, list) and not any(
    cell is not None for row in value if isinstance(row, list) for cell in row
  )
  if empty:
    width = max((len(row) for row in value if isinstance(row, list)), default=0)
    return np.zeros((0, width or len(results.get('tasks') or results.get('test_sizes') or ())))
  try:
    return validate(value, measure)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from None


def _metrics(
  matrix: np.ndarray, results: Mapping[str, Any], measure: Measure, where: Path
) -> dict[str, float]:
  """The metrics as recorded, with those that follow from the matrix."""
  recorded = {
    name: float(value)
    for name, value in (results.get('metrics') or {}).items()
    if isinstance(value, int | float) and math.isfinite(value)
  }
  if not len(matrix):
    return recorded
  try:
    sizes, start = results.get('test_sizes') or None, results.get(f'start_{measure.key}')
    return summarise(matrix, sizes, start=start or None, measure=measure) | recorded
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from None
