"""Tables of data sets: CSV with a header, or JSON lines."""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from pecft_jax.files import read_lines
from pecft_jax.local import local_path

SUFFIXES = ('.csv', '.jsonl')


class Line(NamedTuple):
  """A row of a table."""

  where: str  # File and line, for messages.
  values: dict[str, str]  # By column.


def read_table(
  path: str | os.PathLike[str], required: Sequence[str], optional: Sequence[str] = ()
) -> list[Line]:
  """The rows of a CSV file with a header, or of a file of JSON lines, in UTF-8.

  Other columns are ignored. An optional column is in all rows or in none.

  Args:
    path: of a file that ends in .csv or .jsonl.
    required: columns.
    optional: columns.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for another suffix, a column that is missing, an empty or missing value, or text
      that is not a table; names file and line.

  >>> _ = pathlib.Path('pets.csv').write_text('path,label\\na.png,cat\\n')
  >>> read_table('pets.csv', ['path', 'label'])[0].values['label']
  'cat'
  """
  path = local_path(path)
  if path.suffix.lower() not in SUFFIXES:
    raise ValueError(f'expected a file that ends in {" or ".join(SUFFIXES)}, got {path}')
  if not path.is_file():
    raise FileNotFoundError(f'no file {path}')
  rows, columns = (_csv if path.suffix.lower() == '.csv' else _json_lines)(path)
  if not rows:
    raise ValueError(f'{path} has no rows')
  if missing := [each for each in required if each not in columns]:
    hint = '; columns are separated by commas' if len(columns) == 1 else ''
    raise ValueError(
      f'{path}: expected the columns {list(required)}, got {columns}; missing: {missing}{hint}'
    )
  wanted = [*required, *(each for each in optional if each in columns)]
  return [Line(where, {k: _text(where, k, row.get(k)) for k in wanted}) for where, row in rows]


_Rows = list[tuple[str, dict[str, Any]]]


def _csv(path: pathlib.Path) -> tuple[_Rows, list[str]]:
  rows: _Rows = []
  # Spreadsheets write a byte order mark before UTF-8.
  with open(path, encoding='utf-8-sig', newline='') as file:
    reader = csv.reader(file, strict=True)
    columns: list[str] = []
    try:
      columns = next(reader, [])
      if twice := sorted({each for each in columns if columns.count(each) > 1}):
        raise ValueError(f'{path}, line 1: the columns {twice} come twice')
      for values in reader:
        where = f'{path}, line {reader.line_num}'
        if not values:
          continue
        if len(values) != len(columns):
          raise ValueError(f'{where}: expected {len(columns)} values, got {len(values)}')
        rows.append((where, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
      raise ValueError(f'{path}, line {reader.line_num}: {error}') from error
    except UnicodeDecodeError as error:
      after = reader.line_num
      raise ValueError(f'{path}, after line {after}: expected UTF-8 text, {error}') from error
  return rows, columns


def _json_lines(path: pathlib.Path) -> tuple[_Rows, list[str]]:
  rows = [(f'{path}, line {number}', value) for number, value in read_lines(path)]
  return rows, sorted({key for _, row in rows for key in row})


def _text(where: str, column: str, value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, str | int) or value == '':
    got = 'nothing' if value in (None, '') else repr(value)[:60]
    raise ValueError(f'{where}: expected text for {column!r}, got {got}')
  return str(value)
