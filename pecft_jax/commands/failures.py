"""Messages of a command for errors below it."""

import contextlib
import errno
import inspect
import logging
import pathlib
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

# What this library raises of users' mistakes.
_MISTAKES = (ValueError, ArithmeticError, OSError)
_OURS = pathlib.Path(__file__).resolve().parents[1]
# Where a call that does not fit a factory's signature fails, whoever made the call.
_CHECKS = {str(_OURS / name) for name in ('settings.py', 'arguments.py')}
_MOST = 6  # Lines of users' code in a message: the last ones.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def words(error: BaseException, *, debug: bool = False) -> str | None:
  """What a command says of an error; None where Python's traceback is to be shown.

  That is what a fault of this library needs: an error other than those that it raises of users'
  mistakes, from a line that is not the user's.

  Args:
    error: that was caught.
    debug: show the traceback of any error.
  """
  if debug or not (isinstance(error, _MISTAKES) or _from_users(error)):
    return None
  return told(error)


def told(error: BaseException) -> str:
  """An error message with the lines of the user's own files that led to the error.

  Lines of this library, of Python and of installed packages are left out; `--debug` shows them.
  """
  frames = traceback.extract_tb(error.__traceback__)
  users = _users(frames)
  mine = [frame for frame in frames if frame.filename in users]
  ours = not frames or _is_ours(frames[-1].filename)
  plain = type(error) is ValueError or (ours and isinstance(error, _MISTAKES))
  parts = [] if plain else [type(error).__name__]
  parts += [str(error)] if plain or str(error) else []
  lines = [': '.join(['error', *parts])]
  for frame in mine[-_MOST:]:
    lines += [f'  {frame.filename}, line {frame.lineno}, in {frame.name}', f'    {frame.line}']
  if mine or not ours:
    lines.append('  (--debug shows the whole traceback)')
  return '\n'.join(lines)


def _from_users(error: BaseException) -> bool:
  """Whether the innermost line, of the user's and of this library's, is the user's."""
  frames = traceback.extract_tb(error.__traceback__)
  users = _users(frames)
  if isinstance(error, TypeError) and frames and frames[-1].filename == inspect.__file__:
    frames = [frame for frame in frames if frame.filename not in _CHECKS]
  found = [each.filename for each in frames if each.filename in users or _is_ours(each.filename)]
  return bool(found) and found[-1] in users


def _users(frames: Iterable[traceback.FrameSummary]) -> set[str]:
  """Files that are neither of this library, nor of Python, nor of an installed package."""
  places = sysconfig.get_paths()
  other = [_OURS, *(places[name] for name in ('stdlib', 'platstdlib', 'purelib', 'platlib'))]
  found = map(pathlib.Path, {frame.filename for frame in frames})
  return {
    str(file)
    for file in found
    if file.is_absolute() and file.is_file() and not any(map(file.is_relative_to, other))
  }


def _is_ours(file: str) -> bool:
  return pathlib.Path(file).is_relative_to(_OURS)


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
