"""Faults that a process inflicts upon itself when it comes to a given file."""

import os
import re
import resource
import signal
import sys
from collections.abc import Callable

_EVENTS = ('open', 'os.mkdir', 'os.remove', 'os.rename', 'os.scandir', 'os.listdir')


def die(pattern: str, count: int) -> None:
  """Kills this process at the `count`-th use of a path that matches."""
  _at(pattern, count, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fill_disk(pattern: str, count: int, size: int) -> None:
  """From the `count`-th use of a path that matches on, no file grows beyond some bytes.

  That is what a process without privileges can do to the same effect as a full
  disk: Python, and the libraries below it, get EFBIG in the place of ENOSPC.
  """
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  _at(pattern, count, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)))


def _at(pattern: str, count: int, act: Callable[[], None]) -> None:
  left = count

  def hook(event: str, args: tuple) -> None:
    nonlocal left
    if event in _EVENTS and any(re.search(pattern, str(arg)) for arg in args[:2]):
      left -= 1
      if left == 0:
        act()

  sys.addaudithook(hook)
