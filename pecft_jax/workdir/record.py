"""The log of a run: rows of metrics as JSON lines and CSV."""

import contextlib
import csv
import os
import pathlib
from typing import Any, Protocol

from pecft_jax.files import Row, json_line, named, read_rows, replace_text

COLUMNS: tuple[str, ...] = (
  'kind', 'task', 'epoch', 'step', 'loss', 'accuracy', 'learning_rate', 'learning_rates',
  'evaluated', 'aware', 'seconds',
)  # fmt: skip

_CURVES = ('loss', 'accuracy', 'learning_rate')  # Of TensorBoard.


class Writer(Protocol):
  """Anything that takes rows of metrics beside the files: TensorBoard, a tracker."""

  def __call__(self, row: dict[str, Any], /) -> None:
    """Takes a row as it is appended to the log; rows after the checkpoint come again on resuming.

    Args:
      row: values by name, of `COLUMNS`: `kind`, `task` and what that kind of row has.
    """
    ...


class Record:
  """`metrics.jsonl` and `metrics.csv` of a work directory.

  A resumed run opens them at the number of rows in its checkpoint; rows that a killed process wrote
  after that are cut off, as they will come again.
  """

  def __init__(self, directory: pathlib.Path, rows: int = 0, writers: tuple[Writer, ...] = ()):
    """Opens the files, and cuts them to a number of rows.

    Raises:
      ValueError: if there are fewer, or one of them is damaged.
    """
    self._writers = writers
    self.rows = rows
    path = directory / 'metrics.jsonl'
    kept = read_rows(path)[:rows]
    known = [_known(path, i, row) for i, row in enumerate(kept, 1)]
    if len(kept) < rows:
      raise ValueError(
        f'{path} has {len(kept)} rows, the checkpoint was made after {rows}; bring the file back, '
        'or choose another --workdir'
      )
    replace_text(path, ''.join(f'{row.line}\n' for row in kept))
    # Closed by `close`.
    self._json = open(path, 'a', encoding='utf-8')  # noqa: SIM115
    self._csv_file = open(directory / 'metrics.csv', 'w', encoding='utf-8', newline='')  # noqa: SIM115
    self._csv = csv.DictWriter(self._csv_file, COLUMNS, lineterminator='\n')
    with named(self._csv_file.name):
      self._csv.writeheader()
      self._csv.writerows(known)
      self._csv_file.flush()

  def write(self, row: dict[str, Any]) -> None:
    """Appends one row; its keys are among `COLUMNS`."""
    with named(self._json.name):
      self._json.write(json_line(row))
      self._json.flush()
    with named(self._csv_file.name):
      self._csv.writerow(row)
      self._csv_file.flush()
    self.rows += 1
    for writer in self._writers:
      writer(row)

  def sync(self) -> None:
    """Returns once all rows are on disk; called before a checkpoint that refers to them."""
    with named(self._json.name):
      os.fsync(self._json.fileno())

  def close(self) -> None:
    """Closes the files; `write` has already raised for rows that did not reach the disk."""
    for file in (self._json, self._csv_file):
      with contextlib.suppress(OSError):
        file.close()


class Unwritten:
  """The log in all processes of a job but the first: it only counts rows."""

  def __init__(self, rows: int):
    self.rows = rows

  def write(self, row: dict[str, Any]) -> None:
    """Counts a row."""
    del row
    self.rows += 1

  def sync(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def _known(path: pathlib.Path, number: int, row: Row) -> dict[str, Any]:
  """The row of a line. Raises ValueError where it is damaged."""
  if row.problem or row.value is None:
    raise ValueError(row.problem)
  if not row.value.keys() <= set(COLUMNS):
    raise ValueError(f'{path}, line {number}, is damaged: expected {COLUMNS}, got {row.line}')
  return row.value


def tensorboard(directory: pathlib.Path) -> Writer:
  """A writer of TensorBoard events; needs the extra `tensorboard`.

  Training has a curve for each task, over its steps; evaluations are numbered by their task.

  Args:
    directory: of the events; made if it does not exist.

  Returns:
    A function of one row of the log: an entry of `RunOptions.writers`.

  Raises:
    ValueError: if tensorboardX is not installed.

  >>> import importlib.util
  >>> from pecft_jax.train import RunOptions
  >>> if importlib.util.find_spec('tensorboardX'):
  ...   options = RunOptions(writers=[tensorboard(pathlib.Path('events'))])
  """
  try:
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]  -- an extra
  except ImportError as error:
    raise ValueError("TensorBoard logs need pip install 'pecft_jax[tensorboard]'") from error
  events = SummaryWriter(str(directory))

  def write(row: dict[str, Any]) -> None:
    task, step = row['task'], row.get('step')
    where, number = ('eval', task) if step is None else (f'train/task_{task}', step)
    groups = {f'learning_rate/{name}': rate for name, rate in row.get('learning_rates', {}).items()}
    for name, value in {**{n: row.get(n) for n in _CURVES}, **groups}.items():
      if value is not None:
        events.add_scalar(f'{where}/{name}', value, number)
    events.flush()

  return write
