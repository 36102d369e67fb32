"""What a reader needs to understand a number: titles, definitions, and how it is written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

NAMES = {'finetune': 'sequential fine-tuning', 'joint': 'joint training'}
_THIN = '\u202f'  # Narrow no-break space, between a number and its unit.
_MINUS = '\u2212'


class Metric(NamedTuple):
  """A metric as reports show it."""

  key: str  # Its name in results.json.
  title: str
  definition: str  # One line.
  difference: bool = False  # A signed difference, in points; else an accuracy in percent.
  lower_is_better: bool = False


METRICS = (
  Metric(
    'average_accuracy',
    'Average accuracy',
    'Mean over tasks of the accuracy after the last task.',
  ),
  Metric(
    'average_incremental_accuracy',
    'Average incremental accuracy',
    'Mean over time of the average accuracy after each task.',
  ),
  Metric(
    'forgetting',
    'Forgetting',
    'Mean drop from each earlier task’s past best to its final accuracy (RWalk).',
    difference=True,
    lower_is_better=True,
  ),
  Metric(
    'bwt',
    'Backward transfer',
    'Mean change of each earlier task since it was learned (GEM).',
    difference=True,
  ),
  Metric(
    'learning_accuracy',
    'Learning accuracy',
    'Mean accuracy on each task just after learning it.',
  ),
  Metric(
    'union_accuracy',
    'Union accuracy',
    'Final accuracy over all test examples together, so that larger tasks weigh more.',
  ),
  Metric(
    'fwt',
    'Forward transfer',
    'Mean gain in learning a task over the same model trained on that task alone.',
    difference=True,
  ),
  Metric(
    'intransigence',
    'Intransigence',
    'Mean shortfall on each new task against joint training up to it (RWalk).',
    difference=True,
    lower_is_better=True,
  ),
  Metric(
    'forgetting_inclusive',
    'Forgetting, inclusive',
    'Forgetting with the present counted in the best; never negative (L2P’s variant).',
    difference=True,
    lower_is_better=True,
  ),
  Metric(
    'average_union_accuracy',
    'Average union accuracy',
    'Mean over time of the union accuracy (PILOT’s “average accuracy”).',
  ),
  Metric(
    'fwt_gem',
    'Forward transfer, zero-shot',
    'Mean zero-shot accuracy just before a task over a random model’s (GEM).',
    difference=True,
  ),
)


def percent(value: float, digits: int = 1) -> str:
  """`0.912` as `91.2 %`."""
  return f'{number(100 * value, digits)}{_THIN}%'


def points(value: float, digits: int = 1) -> str:
  """A signed difference of accuracies in percentage points: `0.41` as `+41.0`."""
  text = number(100 * value, digits)
  return text if text.startswith(_MINUS) or not float(text) else f'+{text}'


def number(value: float, digits: int = 1) -> str:
  """Rounded, with a real minus sign and never minus zero."""
  text = f'{value:.{digits}f}'
  return text.replace('-', _MINUS) if float(text) else text.lstrip('-')


def written(metric: Metric, value: float) -> str:
  """A metric's value with its unit."""
  if not metric.difference:
    return percent(value)
  # What is lost is read as an amount; what is gained, as a change.
  return number(100 * value) if metric.lower_is_better else points(value)


def count(value: float) -> str:
  """`1234567` as `1.23 M`."""
  return _scaled(value, 1000, ('', 'k', 'M', 'G'))


def size(value: float) -> str:
  """Bytes, as `1.50 MiB`."""
  return _scaled(value, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))


def seconds(value: float) -> str:
  """`12.3 s`, `4 min 05 s` or `2 h 07 min`."""
  if value < 60:
    return f'{value:.1f}{_THIN}s'
  whole = round(value)
  if whole < 3600:
    return f'{whole // 60}{_THIN}min {whole % 60:02d}{_THIN}s'
  return f'{whole // 3600}{_THIN}h {whole % 3600 // 60:02d}{_THIN}min'


def listed(values: Any, most: int = 12) -> str:
  """A setting on one line; long sequences are cut and say how long they are."""
  if isinstance(values, str) or not isinstance(values, Sequence):
    return str(values)
  if len(values) <= most:
    return ', '.join(listed(value, most) for value in values) or 'none'
  return ', '.join(str(value) for value in values[:most]) + f', … ({len(values)} in all)'


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
  power = 0
  while abs(value) >= base and power < len(units) - 1:
    value, power = value / base, power + 1
  text = f'{value:.0f}' if power == 0 else f'{value:.3g}' if abs(value) < 1000 else f'{value:.0f}'
  return f'{text}{_THIN}{units[power]}'.rstrip(_THIN)
