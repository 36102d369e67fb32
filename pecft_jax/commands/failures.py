"""Messages of a command for errors below it."""

import contextlib
import errno
import logging
import pathlib
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from typing import Any

# Errors of users' mistakes and users' own code; others show Python's traceback.
ERRORS = (ValueError, ArithmeticError, OSError)
_OURS = str(pathlib.Path(__file__).resolve().parents[1])
_MOST = 6  # Lines of users' code in a message: the last ones.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def told(error: BaseException) -> str:
  """An error message with the lines of the user's own files that led to the error.

  Lines of this library, of Python and of installed packages are left out; `--debug` shows them.
  """
  frames = traceback.extract_tb(error.__traceback__)
  mine = [frame for frame in frames if _is_users(frame.filename)]
  ours = not frames or frames[-1].filename.startswith(_OURS)
  kind = '' if ours or type(error) is ValueError else f'{type(error).__name__}: '
  lines = [f'error: {kind}{error}']
  for frame in mine[-_MOST:]:
    lines += [f'  {frame.filename}, line {frame.lineno}, in {frame.name}', f'    {frame.line}']
  if mine or not ours:
    lines.append('  (--debug shows the whole traceback)')
  return '\n'.join(lines)


def _is_users(file: str) -> bool:
  """Whether a file is neither of this library, nor of Python, nor of an installed package."""
  places = sysconfig.get_paths()
  other = [_OURS, *(places[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib'))]
  found = pathlib.Path(file)
  return found.is_absolute() and found.is_file() and not any(map(found.is_relative_to, other))


@contextlib.contextmanager
def room_in(workdir: pathlib.Path) -> Iterator[None]:
  """For a full disk, says what to do."""
  try:
    yield
  except OSError as error:
    if error.errno not in _NO_ROOM:
      raise
    free = shutil.disk_usage(workdir).free
    raise OSError(
      f'{error.filename or workdir}: {error.strerror} ({free:,} bytes are free there). What was '
      'saved is not lost: once there is room, the same command resumes'
    ) from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
  """Hides the tracebacks that orbax logs of errors that it raises as well."""
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels, shown = [logger.level for logger in loggers], sys.unraisablehook

  def show(error: Any) -> None:
    # Writes of other arrays, which are not awaited once one has failed.
    if str(error.exc_value) != 'Event loop is closed':
      shown(error)

  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = show
  failed = False
  try:
    yield
  except OSError:
    failed = True  # These writes end at any time, and this process with them.
    raise
  finally:
    if not failed:
      sys.unraisablehook = shown
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
