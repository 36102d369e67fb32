"""Signals as a question."""

import os
import signal
import threading

import pytest

from pecft_jax.train.signals import stop_signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_once_and_the_next_one_kills(number):
  before = signal.getsignal(number)
  with stop_signals() as asked:
    assert not asked()
    os.kill(os.getpid(), number)
    assert asked()
    assert signal.getsignal(number) is signal.SIG_DFL
  assert signal.getsignal(number) is before


def test_other_threads_leave_signals_alone():
  answers = []

  def work():
    with stop_signals() as asked:
      answers.append(asked())

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert answers == [False]
  assert signal.getsignal(signal.SIGTERM) is before
