"""What a process does that is a job of its own; jobs of several are in tests/distributed."""

import os

import jax
import numpy as np
import pytest

from pecft_jax.devices.processes import (
  agreement,
  barrier,
  ending_together,
  first_only,
  is_first,
  join,
  whole,
)


class Ended(Exception):
  pass


def test_one_process_is_the_first_and_waits_for_none():
  assert is_first()
  barrier('nothing')


def test_one_process_agrees_with_itself_at_once():
  agree = agreement()
  assert agree(0, True, False) == (True, False)
  assert agree(1, False, True) == (False, True)


def test_what_the_first_process_raises_is_raised():
  with pytest.raises(ValueError, match='no'):
    first_only(lambda: (_ for _ in ()).throw(ValueError('no')))


def test_errors_of_one_process_pass():
  with pytest.raises(KeyError), ending_together(unless=Ended):
    raise KeyError


@pytest.mark.parametrize('error', [KeyError('mine'), KeyboardInterrupt(), SystemExit(3)])
def test_a_process_of_a_job_ends_at_once_and_says_why(error, capsys, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  statuses = []
  monkeypatch.setattr(os, '_exit', statuses.append)
  with ending_together(unless=Ended, words=lambda error: f'error: {error!r} in line 2'):
    raise error
  assert statuses == [1]
  text = capsys.readouterr().err
  assert f'error: process 0 of 2: {error!r} in line 2' in text
  assert 'Traceback' not in text
  with ending_together(unless=Ended):
    raise error
  assert 'Traceback' in capsys.readouterr().err


def test_an_array_on_devices_in_memory():
  np.testing.assert_array_equal(whole(jax.numpy.arange(3)), [0, 1, 2])


@pytest.mark.parametrize('coordinator', ['localhost', 'localhost:x', 'AUTO'])
def test_a_coordinator_has_a_port(coordinator):
  with pytest.raises(ValueError, match='HOST:PORT, or auto'):
    join(coordinator, 2, 0)


def test_numbers_of_processes_need_a_coordinator():
  with pytest.raises(ValueError, match='need a coordinator'):
    join(None, 2, 0)


@pytest.mark.parametrize(('processes', 'process_id'), [(2, 2), (0, 0), (2, -1)])
def test_ids_are_below_the_number_of_processes(processes, process_id):
  with pytest.raises(ValueError, match='expected ids of processes'):
    join('localhost:1', processes, process_id)
