"""Tables of one run for the terminal."""

from typing import TYPE_CHECKING

import numpy as np

from pecft_jax.metrics import metrics_of
from pecft_jax.report import facts, glossary
from pecft_jax.report.bounds import beside, headline, standing
from pecft_jax.report.classes import by_class
from pecft_jax.report.read import Run
from pecft_jax.text import rounded

if TYPE_CHECKING:  # Imported in each table, so that reading runs does not load rich.
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

# From a pale yellow to a deep blue, the ends and the middle of the page's heat map.
_SHADES = np.array([[251, 243, 208], [93, 188, 192], [18, 41, 106]], float)


def accuracy_table(run: Run) -> 'Table':
  """The matrix, cells shaded by value, averages at the end of rows.

  Args:
    run: as `read_run` gives it.

  >>> import pathlib
  >>> directory = pathlib.Path('runs/ewc')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"method": "ewc", "accuracy_matrix": [[1.0, null], [0.5, 1.0]]}')
  >>> from pecft_jax.report import read_run
  >>> run = read_run(directory)
  >>> table = accuracy_table(run)
  >>> table.row_count, table.title
  (2, 'Accuracy (%), a row for each time')
  """
  from rich.table import Table

  many = run.total > 10
  what = glossary.titled(run.measure.name.capitalize(), run.measure)
  table = Table(
    title=f'{what}, a row for each time',
    title_justify='left',
    box=None,
    padding=0,
    pad_edge=False,
  )
  # All cells of a column are of one width: rich would strip the space that aligns them.
  table.add_column('after ', style='dim')
  for j in range(run.total):
    table.add_column(f'{j + 1:3d}' if many else f'{j + 1:5d} ', no_wrap=True)
  table.add_column('  mean', style='bold', no_wrap=True)
  seen = run.matrix[~np.isnan(run.matrix)]
  low, high = (seen.min(), seen.max()) if len(seen) else (0.0, 1.0)
  for k, row in enumerate(run.matrix):
    cells = [_cell(value, low, high, _written(run, value, many)) for value in row]
    table.add_row(
      f'{k + 1:5d} ', *cells, f'{_written(run, row[: k + 1].mean(), False).rstrip():>6}'
    )
  return table


def metrics_table(run: Run) -> 'Table':
  """Metrics of the method beside sequential fine-tuning and joint training.

  Args:
    run: as `read_run` gives it.

  >>> import pathlib
  >>> directory = pathlib.Path('runs/er')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"method": "er", "accuracy_matrix": [[1.0, null], [0.5, 1.0]]}')
  >>> from pecft_jax.report import read_run
  >>> run = read_run(directory)
  >>> [column.header for column in metrics_table(run).columns][0]
  'metric'
  """
  bounds = beside(run)
  from rich.table import Table
  from rich.text import Text

  after = '' if run.done else f' after {run.finished} of {run.total} tasks'
  table = Table(title=f'Metrics{after}', title_justify='left', box=None, pad_edge=False)
  table.add_column('metric')
  table.add_column(Text(run.title), justify='right', style='bold')
  for name in bounds:
    table.add_column(Text(name), justify='right')
  for metric in metrics_of(run.measure):
    values = [run.metrics.get(metric.name), *(v.get(metric.name) for v in bounds.values())]
    if any(value is not None for value in values):
      cells = ['' if v is None else glossary.written(metric, v) for v in values]
      table.add_row(metric.title, *cells)
  return table


def classes_table(run: Run) -> 'Table':
  """The accuracy of each class of few, or of the worst of many; without rows where unknown.

  Args:
    run: as `read_run` gives it.

  >>> import pathlib
  >>> directory = pathlib.Path('runs/classes')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text('{"accuracy_matrix": [[0.5]], '
  ...   '"per_class_accuracy": [0.0, 1.0], "class_test_sizes": [2, 2]}')
  >>> from pecft_jax.report import read_run
  >>> classes_table(read_run(directory)).row_count
  2
  """
  from rich.table import Table
  from rich.text import Text

  head, rows = facts.per_class(run)
  count = len(by_class(run))
  which = f'the {len(rows)} worst of {count}' if len(rows) < count else 'the worst first'
  table = Table(title=f'Classes, {which}', title_justify='left', box=None, pad_edge=False)
  for i, title in enumerate(head):
    table.add_column(title, justify='right' if i else 'left', no_wrap=bool(i))
  for row in rows:
    table.add_row(*map(Text, row))
  return table


def print_run(run: Run, console: 'Console | None' = None) -> None:
  """Prints the headline, the accuracy matrix, the metrics, and the classes where they are known.

  Args:
    run: as `read_run` gives it.
    console: to print on; standard output by default.

  >>> import pathlib
  >>> directory = pathlib.Path('runs/lwf')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"method": "lwf", "accuracy_matrix": [[1.0, null], [0.5, 1.0]]}')
  >>> from pecft_jax.report import read_run
  >>> run = read_run(directory)
  >>> from rich.console import Console
  >>> print_run(run, Console(width=80))
  lwf: 75.0 % average accuracy
  ...
  """
  from rich.console import Console
  from rich.text import Text

  console = Console() if console is None else console
  at = standing(run)
  console.print(Text(headline(at), style='bold'))
  for note in at.notes:
    console.print(Text(note, style='dim'))
  if run.finished:
    tables = [accuracy_table(run), metrics_table(run)]
    if by_class(run):
      tables.append(classes_table(run))
    for table in tables:
      console.print()
      console.print(table)


def _written(run: Run, value: float, short: bool) -> str:
  if run.measure.percent:
    return f'{100 * value:3.0f}' if short else f'{100 * value:5.1f} '
  return f'{rounded(value, 2 if short else 3):>5} '


def _cell(value: float, low: float, high: float, text: str) -> 'Text':
  from rich.text import Text

  if np.isnan(value):
    return Text('')
  place = (value - low) / (high - low) if high > low else 1.0
  rgb = [int(np.interp(place, [0, 0.5, 1], shade)) for shade in _SHADES.T]
  ink = 'white' if np.dot(rgb, (0.299, 0.587, 0.114)) < 140 else 'black'
  return Text(text, style=f'{ink} on rgb({rgb[0]},{rgb[1]},{rgb[2]})')
