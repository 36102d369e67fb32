"""Runs in this process that share compiled functions, and can be stopped at will."""

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
from compiled_once import compile_once

from pecft_jax.train import job, running


@pytest.fixture(autouse=True)
def shared_steps(monkeypatch):
  """Compiles the functions of each method once for all tests."""
  monkeypatch.setattr(job, 'compile_steps', compile_once)


@pytest.fixture
def interrupt(monkeypatch) -> Callable[..., None]:
  """`interrupt(tick, error=None)`: the next runs stop, or fail, after so many ticks."""

  def set_up(tick: int | None, error: Exception | None = None) -> None:
    @contextlib.contextmanager
    def signals():
      left = tick

      def asked() -> bool:
        nonlocal left
        if left is None:
          return False
        left -= 1
        if left == 0 and error is not None:
          raise error
        return left == 0

      yield asked

    monkeypatch.setattr(running, 'stop_signals', signals)

  return set_up


@pytest.fixture
def stop_in(monkeypatch) -> Callable[..., None]:
  """`stop_in(phases)`: the next runs save and stop after the first batch of each.

  `phases` is a set of (task, phase), which loses those that a run has stopped in.
  """

  def set_up(phases: set[tuple[int, str]]) -> None:
    at = []
    run_tasks = job.run_tasks

    def noting(loop, state, position):
      def after_batch(state, position):
        at[:] = [(position.task, position.phase)]
        loop.after_batch(state, position)

      return run_tasks(dataclasses.replace(loop, after_batch=after_batch), state, position)

    @contextlib.contextmanager
    def signals():
      def asked() -> bool:
        found = phases.intersection(at)
        phases.difference_update(found)
        return bool(found)

      yield asked

    monkeypatch.setattr(job, 'run_tasks', noting)
    monkeypatch.setattr(running, 'stop_signals', signals)

  return set_up
