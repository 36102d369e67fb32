"""Runs of every method, each once a process."""

import functools

import pytest
from tiny_runs import silent, tiny_experiment

from pecft_jax.train import run


@pytest.fixture(scope='session')
def run_of(tmp_path_factory):
  """`(method) -> (experiment, work directory)` of a run that has ended, with all checkpoints."""

  @functools.cache
  def make(method):
    experiment = tiny_experiment(method)
    directory = tmp_path_factory.mktemp('learned') / 'run'
    run(experiment, directory, silent(keep_tasks=True))
    return experiment, directory

  return make
