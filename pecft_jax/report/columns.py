"""The columns of a comparison, shared by its page and its Markdown."""

from collections.abc import Callable
from typing import NamedTuple

from pecft_jax.report import glossary
from pecft_jax.report.groups import Group, closed, deviation, gained, mean
from pecft_jax.report.read import Run


class Column(NamedTuple):
  """A quantity of each group."""

  title: str
  read: Callable[[Run], float | None]
  write: Callable[[float], str]
  spread: bool = True  # Fractions, written in percent with their spread over seeds.
  best: int = 0  # 1: the highest is best, -1: the lowest, 0: neither.


class Cell(NamedTuple):
  text: str
  best: bool


Table = list[tuple[str, list[Cell]]]  # Title of each column, and a cell for each group.


def accuracy(groups: tuple[Group, ...], comparable: bool) -> Table:
  """What the methods reach; columns without any value are left out.

  Args:
    comparable: whether the best of a column may be marked at all.
  """
  return _table(_ACCURACY, groups, comparable)


def cost(groups: tuple[Group, ...], comparable: bool) -> Table:
  """What the methods take, in the same form."""
  return _table(_COST, groups, comparable)


def percentages(values: list[float]) -> str:
  """Mean and sample standard deviation in percent: `91.2 ± 0.3`, or just the mean of one."""
  spread = deviation(values)
  text = glossary.number(100 * mean(values))
  return text if spread is None else f'{text} ± {glossary.number(100 * spread)}'


def _table(columns: tuple[Column, ...], groups: tuple[Group, ...], comparable: bool) -> Table:
  out = []
  for column in columns:
    values = [group.values(column.read) for group in groups]
    means = [mean(v) * column.best for v in values if v]
    # Nobody is best where all are the same.
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
  return percentages(values) if column.spread else column.write(mean(values))


def _metric(key: str) -> Callable[[Run], float | None]:
  return lambda run: run.metrics.get(key)


def _efficiency(key: str) -> Callable[[Run], float | None]:
  return lambda run: (run.results.get('efficiency') or {}).get(key)


def _training_time(run: Run) -> float | None:
  spent = (run.results.get('efficiency') or {}).get('seconds_per_task') or ()
  known = [value for value in spent if value is not None]
  return sum(known) if known else None


_NOT_SHOWN = ('forgetting_inclusive', 'average_union_accuracy', 'fwt_gem')
_ACCURACY = (
  *(
    Column(
      f'{metric.title} ({"points" if metric.difference else "%"})',
      _metric(metric.key),
      glossary.number,
      best=-1 if metric.lower_is_better else 1,
    )
    for metric in glossary.METRICS
    if metric.key not in _NOT_SHOWN
  ),
  Column('Over fine-tuning (points)', gained, glossary.number, best=1),
  Column('Gap to joint closed (%)', closed, glossary.number, best=1),
)
_COST = (
  Column('Trainable parameters', _efficiency('trainable_parameters'), glossary.count, False, -1),
  Column('Carried state', _efficiency('carried_state_bytes'), glossary.size, False, -1),
  Column('Passes per prediction', _efficiency('forward_passes_per_prediction'), '{:g}'.format,
         False, -1),
  Column('Peak memory', _efficiency('peak_memory_bytes'), glossary.size, False, -1),
  Column('Training time', _training_time, glossary.seconds, False),
)  # fmt: skip
