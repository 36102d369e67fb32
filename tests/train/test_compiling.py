"""Tracing and compiling are measured once, and only while the clock runs."""

import time

import jax
import jax.monitoring

from pecft_jax.train.compiling import compile_clock

_EVENT = '/jax/core/compile/backend_compile_duration'


def test_spans_inside_others_count_once():
  with compile_clock() as seconds:
    for start, end in ((11.0, 12.0), (13.0, 14.0), (10.0, 15.0), (20.0, 21.0), (20.5, 22.0)):
      jax.monitoring.record_event_time_span(_EVENT, start, end)
  assert seconds() == 5.0 + 2.0


def test_other_events_do_not_count():
  with compile_clock() as seconds:
    jax.monitoring.record_event_time_span('/jax/other', 0.0, 1.0)
  assert seconds() == 0.0


def test_nothing_counts_after_the_end():
  with compile_clock() as seconds:
    pass
  jax.monitoring.record_event_time_span(_EVENT, 0.0, 1.0)
  assert seconds() == 0.0


def test_what_jax_compiles_counts():
  started = time.perf_counter()
  with compile_clock() as seconds:
    jax.jit(lambda x: x * 3 + 1)(2.0)
  assert 0 < seconds() <= time.perf_counter() - started
