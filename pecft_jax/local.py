"""Paths on this machine, and JSON files that other programs wrote."""

import json
import os
import pathlib
import re
from typing import Any

# Orbax finds the parts of a checkpoint by a pattern that holds its whole path.
_PATTERN_CHARACTERS = '*?[\\'


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path of the local file system, with the home directory for a leading `~`.

  >>> local_path('runs/a') == pathlib.Path('runs/a')
  True

  Raises:
    ValueError: for a URL such as `gs://bucket/run`, which as a path would name a local
      directory `gs:`.
  """
  text = os.fspath(path)
  # A `pathlib.Path` has one slash left of two.
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', text):
    raise ValueError(
      f'expected a local path, got the URL {text!r}; mount the bucket (with gcsfuse, for example) '
      'and give the path of the mount'
    )
  # Unlike pathlib's `expanduser`, this one leaves `~name` alone where there is no such user.
  return pathlib.Path(os.path.expanduser(text))


def work_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """`local_path` of a work directory, where checkpoints can be written and found again.

  Raises:
    ValueError: for a URL, or a path that holds one of `* ? [` and the backslash.
  """
  directory = local_path(path)
  found = [character for character in _PATTERN_CHARACTERS if character in str(directory.absolute())]
  if found:
    raise ValueError(
      f'checkpoints cannot be kept below {directory.absolute()}: expected a path without '
      f'{" ".join(_PATTERN_CHARACTERS)}, found {" ".join(found)}'
    )
  return directory


def read_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
  """The object of a JSON file that somebody else wrote.

  Args:
    path: of the file.
    what: it is, for messages.

  Raises:
    ValueError: if there is no such file, it is not JSON or no object, or one of its objects has a
      key twice, of which readers would silently take the last.
  """
  path = local_path(path)
  if not path.is_file():
    raise ValueError(f'{path} is not {what}: there is no such file')
  try:
    value = json.loads(path.read_text(encoding='utf-8'), object_pairs_hook=_once)
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not {what}: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} is not {what}: expected an object, got {type(value).__name__}')
  return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f'{sorted({name for name in names if names.count(name) > 1})} come twice')
  return found
