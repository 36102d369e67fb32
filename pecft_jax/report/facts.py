"""Facts about a run besides its accuracy, as rows of text for any kind of output."""

from collections.abc import Mapping
from typing import Any

from pecft_jax.report import glossary
from pecft_jax.report.classes import by_class, ends, shown, task_intervals
from pecft_jax.report.read import Run
from pecft_jax.text import count, duration, listed, number, size

Lines = list[tuple[str, str | None]]  # Title and text; None where it was not recorded.

_PREDICTION = {
  'class': 'task-agnostic: the model is not told the task',
  'domain': 'task-agnostic: the model is not told the domain',
  'task': 'task-aware: the task is given at test time',
}


def identity(run: Run) -> Lines:
  """Everything that must be equal for two numbers to be comparable."""
  recorded = run.results.get('identity') or {}
  kind, seed = run.scenario, run.results.get('seed')
  rows = [
    ('Benchmark', _text(recorded.get('benchmark'))),
    ('Scenario', f'{kind}-incremental, {run.total} tasks' if kind else None),
    ('Measure', _measured(run)),
    ('Predictions are', _PREDICTION.get(str(kind))),
    ('Class order', _order(recorded.get('class_order'))),
    ('Split digest', _text(recorded.get('split_digest'))),
    ('Backbone', _text(recorded.get('backbone'))),
    ('Backbone sha256', _text(recorded.get('backbone_sha256'))),
    ('Value range of inputs', _text(recorded.get('value_range'))),
    ('Axis of the matrix', '[time, task]'),
    ('Average', 'mean over tasks, each the same weight; the union is named apart'),
    ('Forgetting', 'from the best of the past, the present not counted (RWalk)'),
    ('Seeds', None if seed is None else f'one run, seed {seed}: no spread is known'),
    ('Status', f'{"done" if run.done else "running"}, {run.finished} of {run.total} tasks'),
    ('State sha256', _text(run.results.get('state_sha256'))),
  ]
  known = {'benchmark', 'class_order', 'split_digest', 'backbone', 'backbone_sha256', 'value_range'}
  more = [(_title(key), _text(value)) for key, value in recorded.items() if key not in known]
  compiled = run.results.get('compilations') or {}
  times = ', '.join(f'{name} {number}' for name, number in compiled.items())
  return rows + more + ([('Compilations', times)] if times else [])


def efficiency(run: Run) -> Lines:
  """Costs of a run; fields that were not recorded are None."""
  e = run.results.get('efficiency') or {}
  spent = [value for value in e.get('seconds_per_task') or () if value is not None]
  sizes = [value for value in e.get('state_bytes_per_task') or () if value is not None]
  growth = f'{size(sizes[0])} → {size(sizes[-1])}' if sizes else None
  return [
    ('Trainable parameters', _with(count, e.get('trainable_parameters'))),
    ('State carried between tasks', _with(size, e.get('carried_state_bytes'))),
    ('State after the first → last task', growth),
    ('Optimizer state', _with(size, e.get('optimizer_state_bytes'))),
    ('Frozen backbone', _with(size, e.get('backbone_bytes'))),
    ('Forward passes per prediction', _with('{:g}'.format, e.get('forward_passes_per_prediction'))),
    ('Training time', duration(sum(spent)) if spent else None),
    ('Training time per task', duration(sum(spent) / len(spent)) if spent else None),
    ('Tracing and compiling', _with(duration, e.get('compile_seconds'))),
    ('Images per second in training', _with(count, e.get('train_images_per_second'))),
    ('Peak memory', _with(size, e.get('peak_memory_bytes'))),
  ]


def configuration(run: Run) -> Lines:
  """config.json with nested names joined by dots, without what other tables show."""
  own = {k: v for k, v in run.config.items() if k not in {'identity', 'environment'}}
  return [(key, listed(value)) for key, value in flat(own).items()]


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """`{'peft': {'rank': 8}}` as `{'peft.rank': 8}`."""
  out = {}
  for key, value in config.items():
    nested = isinstance(value, Mapping) and value
    out |= flat(value, f'{prefix}{key}.') if nested else {f'{prefix}{key}': value}
  return out


def per_task(run: Run) -> tuple[list[str], list[list[str]]]:
  """Titles, and one row for each finished task."""
  k, a = run.finished, run.matrix
  write = lambda value: glossary.level(run.measure, value)
  columns = {
    'learned': [write(a[j, j]) for j in range(k)],
    'final' if run.done else 'now': [write(a[-1, j]) for j in range(k)],
    '95 % interval': ['' if each is None else ends(each) for each in task_intervals(run)[:k]],
    'change': [
      glossary.change(run.measure, a[-1, j] - a[j, j]) if j < k - 1 else '' for j in range(k)
    ],
  }
  if not any(columns['95 % interval']):
    del columns['95 % interval']
  if run.task_aware is not None and len(run.task_aware) == k and run.scenario != 'task':
    columns['task-aware'] = [write(value) for value in run.task_aware[-1, :k]]
  e = run.results.get('efficiency') or {}
  for title, values, write in (
    ('test examples', run.results.get('test_sizes'), str),
    ('seconds', e.get('seconds_per_task'), number),
    ('state', e.get('state_bytes_per_task'), size),
  ):
    if values and len(values) >= k:
      columns[title] = ['' if value is None else write(value) for value in values[:k]]
  rows = [[name, *cells] for name, *cells in zip(run.tasks[:k], *columns.values(), strict=True)]
  return ['task', *columns], rows


def per_class(run: Run) -> tuple[list[str], list[list[str]]]:
  """Titles, and a row for each class of few, or for the worst of many, the worst first."""
  rows = [
    [each.name, glossary.level(run.measure, each.accuracy), ends(each.interval), str(each.examples)]
    for each in shown(by_class(run))
  ]
  return ['class', 'accuracy', '95 % interval', 'test examples'], rows


def _measured(run: Run) -> str:
  """The measure with its range and direction."""
  low, high = (f'{side:g}'.replace('inf', '∞') for side in (run.measure.low, run.measure.high))
  return f'{run.measure.name} in [{low}, {high}], {run.measure.direction} is better'


def _order(order: Any) -> str | None:
  natural = isinstance(order, list) and order == list(range(len(order)))
  return f'natural, 0 to {len(order) - 1}' if natural and order else _text(order)


def _text(value: Any) -> str | None:
  return None if value is None else listed(value)


def _title(key: str) -> str:
  return key.replace('_', ' ').capitalize()


def _with(write: Any, value: Any) -> str | None:
  return None if value is None else write(value)
