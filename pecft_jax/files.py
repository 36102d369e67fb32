"""JSON and JSON-lines files: errors name file and line; files are written whole or not at all."""

import codecs
import collections
import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from pecft_jax.local import local_path


class Row(NamedTuple):
  """One line of a JSON-lines file."""

  line: str  # The line, without its line break.
  value: dict[str, Any] | None  # None where it is damaged.
  problem: str | None  # Names file and line.


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: for anything else than one JSON object, text that is not Unicode, or an object
      with a key twice, of which readers would silently take the last; names the file and the line.
    OSError: where the file cannot be read, or there is none.

  >>> import tempfile
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'a.json'
  >>> write_json(path, {'rate': 0.5, 'steps': float('nan')})
  >>> read_json(path)
  {'rate': 0.5, 'steps': None}
  """
  path = pathlib.Path(path)
  return _object(path.read_bytes(), str(path), 'is damaged')


def read_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
  """`read_json` of a file that another program or a person wrote.

  Args:
    path: of the file; `~` is the home directory.
    what: the kind of file, for messages: `a card`.

  Raises:
    ValueError: as for `read_json`, and where there is no such file, or it cannot be read.

  >>> read_object('absent.json', 'a card')
  Traceback (most recent call last):
  ValueError: absent.json is not a card: there is no such file
  """
  path = local_path(path)
  if not path.is_file():  # Reading a pipe would wait for ever.
    raise ValueError(f'{path} is not {what}: there is no such file')
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise ValueError(f'{path} is not {what}: {error.strerror}') from error
  return _object(raw, str(path), f'is not {what}')


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
  """The lines of a JSON-lines file; none where there is no such file.

  The last line may be one that is being written, or that a killed process did not
  finish: it is left out unless it is whole.

  Raises:
    OSError: where the file cannot be read.
  """
  path = pathlib.Path(path)
  try:
    *whole, last = path.read_bytes().split(b'\n')
  except FileNotFoundError:
    return []
  rows = [_row(line, f'{path}, line {number},') for number, line in enumerate(whole, 1)]
  unfinished = _row(last, f'{path}, line {len(whole) + 1},')
  return rows if unfinished.problem else [*rows, unfinished]


def read_lines(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, Any]]]:
  """The objects of a JSON-lines file that must be whole, each with its number of line, from 1.

  Empty lines are left out.

  Raises:
    ValueError: as `read_json`; names file and line.
    OSError: where the file cannot be read.
  """
  lines = pathlib.Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b'\n')
  return [
    (number, _object(line, f'{path}, line {number},', 'is damaged', lines=False))
    for number, line in enumerate(lines, 1)
    if line.strip()
  ]


def _row(line: bytes, where: str) -> Row:
  try:
    value, problem = _object(line, where, 'is damaged', lines=False), None
  except ValueError as error:
    value, problem = None, str(error)
  return Row(line.decode('utf-8', errors='replace'), value, problem)


def _object(raw: bytes, where: str, verdict: str, lines: bool = True) -> dict[str, Any]:
  try:
    value = json.loads(raw.decode('utf-8'), object_pairs_hook=_once)
    if b'\\u' in raw:  # Text with half of a surrogate pair can be put into no file.
      json.dumps(value, ensure_ascii=False).encode()
  except UnicodeDecodeError as error:
    raise ValueError(f'{where} {verdict}: byte {error.start} is not UTF-8') from error
  except json.JSONDecodeError as error:
    line = f', line {error.lineno},' if lines else ''
    raise ValueError(f'{where}{line} {verdict}: {error.msg} at column {error.colno}') from error
  except UnicodeEncodeError as error:
    raise ValueError(f'{where} {verdict}: {error.object[error.start]!r} is no character') from error
  except (ValueError, RecursionError) as error:  # Endless digits or brackets, keys that come twice.
    raise ValueError(f'{where} {verdict}: {str(error)[:80]}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{where} {verdict}: expected an object, got {value!r:.60}')
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    count = collections.Counter(name for name, _ in pairs)
    raise ValueError(f'{[name for name in found if count[name] > 1][:8]} come twice')
  return found


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON whole or not at all; values as `plain` makes them."""
  replace_text(path, json.dumps(plain(value), indent=1, allow_nan=False) + '\n')


def json_line(value: Any) -> str:
  """A line of a JSON-lines file, with its line break.

  >>> json_line({'loss': 0.5})
  '{"loss": 0.5}\\n'
  """
  return json.dumps(plain(value), allow_nan=False) + '\n'


def replace_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file whole or not at all, and returns once it is on the disk.

  Raises:
    OSError: names the file.
  """
  with replacing(path) as file:
    file.write(text.encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """A file to write to, which takes its name when all is written, and is on the disk then.

  After an error there is no such file, or the one from before.

  Raises:
    OSError: names the file.

  >>> import tempfile
  >>> path = pathlib.Path(tempfile.mkdtemp()) / 'a.txt'
  >>> with replacing(path) as file:
  ...   _ = file.write(b'a')
  >>> path.read_text()
  'a'
  """
  path = pathlib.Path(path)
  part = path.with_name(path.name + '.part')
  try:
    with open(part, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
  except BaseException as error:
    part.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
      # Of writing, or of closing the file, which writes what is left.
      raise OSError(error.errno, error.strerror, str(part)) from error
    raise
  os.replace(part, path)


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
  """Adds to an OSError of writing which file it was."""
  try:
    yield
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error


def plain(value: Any) -> Any:
  """JSON's own types: NaN and infinities as null, numpy's scalars and arrays as numbers.

  >>> plain({1: (float('inf'), 2)})
  {'1': [None, 2]}
  """
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if hasattr(value, 'item') and not hasattr(value, '__len__'):
    value = value.item()
  if hasattr(value, 'tolist'):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
