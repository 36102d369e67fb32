"""SIGTERM and SIGINT as a flag that the loop polls."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
  """Yields a function that returns whether the process was asked to stop; a second signal kills."""
  caught: list[int] = []

  def handle(number: int, frame: Any) -> None:
    del frame
    caught.append(number)
    signal.signal(number, signal.SIG_DFL)

  before = {}
  try:
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, handle)
  except ValueError:
    pass  # Not the main thread: signal handlers belong to the program that runs that one.
  try:
    yield lambda: bool(caught)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
