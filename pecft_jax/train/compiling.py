"""Seconds spent on tracing and compiling, which are no part of training time."""

import contextlib
from collections.abc import Callable, Iterator

import jax.monitoring

_EVENTS = '/jax/core/compile/'


@contextlib.contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
  """Measures tracing, lowering and compiling in this process while the context lasts.

  Functions that are compiled while others are traced count once.

  Yields:
    A function that returns the seconds so far.

  >>> import jax
  >>> with compile_clock() as seconds:
  ...   _ = jax.jit(lambda x: x + 1)(1.0)
  >>> seconds() > 0
  True
  """
  spans: list[tuple[float, float]] = []  # Disjoint, in order.

  def listen(event: str, start_time: float, end_time: float, **_: object) -> None:
    if not event.startswith(_EVENTS):
      return
    start, end = start_time, end_time
    # Events come when they end, so those inside of this one are the last of the list.
    while spans and spans[-1][0] >= start:
      spans.pop()
    if spans:
      start = max(start, spans[-1][1])
    spans.append((start, max(start, end)))

  jax.monitoring.register_event_time_span_listener(listen)
  try:
    yield lambda: sum(end - start for start, end in spans)
  finally:
    jax.monitoring.unregister_event_time_span_listener(listen)
