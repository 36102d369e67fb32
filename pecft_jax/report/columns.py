"""The columns of a comparison, shared by its page and its Markdown."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from pecft_jax.metrics import ACCURACY, Measure, metrics_of
from pecft_jax.report import environments, glossary
from pecft_jax.report.groups import Group, closed, deviation, gained, mean
from pecft_jax.report.read import Run
from pecft_jax.text import count, duration, size


class Column(NamedTuple):
  """A quantity of each group."""

  title: str
  read: Callable[[Run], float | None]
  write: Callable[[float], str]
  spread: bool = True  # Whether the spread over seeds is written, too.
  best: int = 0  # 1: the highest is best, -1: the lowest, 0: neither.


class Cell(NamedTuple):
  text: str
  best: bool


Table = list[tuple[str, list[Cell]]]  # Title of each column, and a cell for each group.


def quality(groups: tuple[Group, ...], comparable: bool) -> Table:
  """Columns of the quality of predictions; those without any value are left out.

  Args:
    groups: of one measure, or of several, each with columns of its own.
    comparable: whether the best of a column may be marked at all.
  """
  measures = dict.fromkeys(run.measure for group in groups for run in group.runs)
  columns = [column for measure in measures for column in _columns_of(measure)]
  return _table(tuple(columns), groups, comparable)


def cost(groups: tuple[Group, ...], comparable: bool) -> Table:
  """Columns of the cost of methods, in the same form.

  The least peak memory is marked only where all runs have the same environment.
  """
  alike = environments.alike([run for group in groups for run in group.runs])
  columns = [c if alike or c.title != _MEMORY else c._replace(best=0) for c in _COST]
  return _table(tuple(columns), groups, comparable)


def averages(values: list[float], write: Callable[[float], str]) -> str:
  """Mean and sample standard deviation, `91.2 ± 0.3`; for one value the value alone."""
  spread = deviation(values)
  text = write(mean(values))
  return text if spread is None else f'{text} ± {write(spread)}'


def _table(columns: tuple[Column, ...], groups: tuple[Group, ...], comparable: bool) -> Table:
  out = []
  for column in columns:
    values = [group.values(column.read) for group in groups]
    means = [mean(v) * column.best for v in values if v]
    # No best where all are the same.
    mark = comparable and means and max(means) > min(means)
    if means:
      best = [bool(mark and v and mean(v) * column.best == max(means)) for v in values]
      out.append(
        (column.title, [Cell(_text(column, v), b) for v, b in zip(values, best, strict=True)])
      )
  return out


def _text(column: Column, values: list[float]) -> str:
  if not values:
    return '–'
  return averages(values, column.write) if column.spread else column.write(mean(values))


def _efficiency(key: str) -> Callable[[Run], float | None]:
  return lambda run: (run.results.get('efficiency') or {}).get(key)


def _training_time(run: Run) -> float | None:
  spent = (run.results.get('efficiency') or {}).get('seconds_per_task') or ()
  known = [value for value in spent if value is not None]
  return sum(known) if known else None


def _columns_of(measure: Measure) -> list[Column]:
  """The main metrics of a measure, and where a run stands between its bounds."""
  write = functools.partial(glossary.bare, measure)
  titled = functools.partial(glossary.titled, measure=measure)
  own = lambda read: lambda run: read(run) if run.measure == measure else None
  metrics = [
    Column(
      titled(metric.title, difference=metric.difference),
      own(lambda run, name=metric.name: run.metrics.get(name)),
      write,
      best=1 if metric.direction == 'higher' else -1,
    )
    for metric in metrics_of(measure)
    if metric.main
  ]
  share = functools.partial(glossary.bare, ACCURACY)
  return [
    *metrics,
    Column(titled('Gain over fine-tuning', difference=True), own(gained), write, best=1),
    Column('Gap to joint closed (%)', own(closed), share, best=1),
  ]


_MEMORY = 'Peak memory'
_COST = (
  Column('Trainable parameters', _efficiency('trainable_parameters'), count, False, -1),
  Column('Carried state', _efficiency('carried_state_bytes'), size, False, -1),
  Column('Passes per prediction', _efficiency('forward_passes_per_prediction'), '{:g}'.format,
         False, -1),
  Column(_MEMORY, _efficiency('peak_memory_bytes'), size, False, -1),
  Column('Training time', _training_time, duration, False),
)  # fmt: skip
