"""What a command says where something fails below it."""

import contextlib
import errno
import logging
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_in(workdir: pathlib.Path) -> Iterator[None]:
  """Says of a full disk what to do."""
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
  """Keeps from the terminal what orbax logs of errors that it raises, too: pages of traces."""
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels, shown = [logger.level for logger in loggers], sys.unraisablehook

  def show(error: Any) -> None:
    # Writes of other arrays, which nobody waits for once one has failed.
    if str(error.exc_value) != 'Event loop is closed':
      shown(error)

  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = show
  failed = False
  try:
    yield
  except OSError:
    failed = True  # Those writes end whenever they do, and this process with them.
    raise
  finally:
    if not failed:
      sys.unraisablehook = shown
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
