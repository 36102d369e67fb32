"""What tests with made-up inputs share: how many there are, and how long each may take."""

import contextlib
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings

SECONDS = 20


def fuzzed(number):
  """A test of so many inputs, or as many as `--fuzz` says."""

  def decorate(test):
    profile = settings.default
    count = number if profile.derandomize else profile.max_examples
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
      max_examples=count, deadline=None, suppress_health_check=checks, phases=[Phase.generate]
    )(test)

  return decorate


@contextlib.contextmanager
def in_time():
  """Fails what takes longer than it may."""

  def stop(*_):
    pytest.fail(f'took longer than {SECONDS} s')

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
