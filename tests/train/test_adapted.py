"""What a run has made of its backbone, read back from its work directory."""

import os

import chex
import pytest
from tiny_runs import silent, tiny_experiment

from pecft_jax.train import adapted_after, run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('runs') / "it's 100% äöü, lr=1e-3"
  run(tiny_experiment(), path, silent(keep_tasks=True))
  return path


def test_the_directory_may_be_relative(workdir, monkeypatch):
  there = adapted_after(tiny_experiment(), workdir)
  monkeypatch.chdir(workdir.parent)
  here = adapted_after(tiny_experiment(), workdir.name)
  assert here.tasks == there.tasks == 2
  chex.assert_trees_all_equal(here.adapted.delta, there.adapted.delta)
  assert adapted_after(tiny_experiment(), os.path.join('.', workdir.name), 1).tasks == 1


def test_a_url_is_no_directory(workdir):
  with pytest.raises(ValueError, match='expected a local path, got the URL'):
    adapted_after(tiny_experiment(), 'gs://bucket/run')
