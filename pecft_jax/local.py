"""Paths on this machine."""

import os
import pathlib
import re

# Orbax finds the parts of a checkpoint by a pattern that holds its whole path.
_PATTERN_CHARACTERS = '*?[\\'


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path of the local file system, with the home directory for a leading `~`.

  >>> local_path('runs/a') == pathlib.Path('runs/a')
  True

  Raises:
    ValueError: for an empty text, which would name the current directory, or a URL such as
      `gs://bucket/run`, which as a path would name a local directory `gs:`.
  """
  text = os.fspath(path)
  if not text:
    raise ValueError('expected a path, got an empty text')
  _check_utf8(text)
  # `pathlib.Path` reduces two slashes to one.
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
  _check_utf8(str(directory.absolute()))
  found = [character for character in _PATTERN_CHARACTERS if character in str(directory.absolute())]
  if found:
    raise ValueError(
      f'checkpoints cannot be kept below {directory.absolute()}: expected a path without '
      f'{" ".join(_PATTERN_CHARACTERS)}, found {" ".join(found)}'
    )
  return directory


def _check_utf8(text: str) -> None:
  """Raises ValueError for a path of other bytes than UTF-8, which JSON files cannot hold."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f'expected a path in UTF-8, got {text!r}') from error
