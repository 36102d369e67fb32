"""Runs of methods with phases of their own may be left and entered in the middle of each."""

import functools

import jax
import numpy as np
import pytest
from tinies import tiny
from tiny_runs import TRAINING, outcome, silent, tiny_experiment

from pecft_jax import data
from pecft_jax.backbones import vit
from pecft_jax.train import Experiment, Stopped, run
from pecft_jax.typing import Capacity, Pretrained


@functools.cache
def growing():
  """SEMA on a small ViT."""
  model = vit(image_size=8, channels=1, patch=4, width=8, depth=1, heads=2, mean=(0.5,), std=(0.5,))

  def source(each, seed):
    labels = np.arange(4).repeat(each)
    noise = np.random.default_rng(seed).integers(0, 90, (len(labels), 8, 8, 1))
    return data.arrays('tiny', (noise + 40 * labels[:, None, None, None]).astype(np.uint8), labels)

  scenario = data.class_incremental(source(6, 0), source(3, 1), tasks=2)
  frozen = model.init(jax.random.key(0))
  return Experiment(
    Pretrained(model, frozen), scenario, tiny('sema', model, Capacity(2, 4)), TRAINING
  )


EXPERIMENTS = {'icarl': lambda: tiny_experiment('icarl'), 'sema': growing}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """`whole(name)`: the outcome of a run that was never interrupted."""

  @functools.cache
  def get(name):
    workdir = tmp_path_factory.mktemp(name)
    run(EXPERIMENTS[name](), workdir, silent())
    return outcome(workdir)

  return get


@pytest.mark.parametrize(
  ('name', 'tick', 'where'),
  [
    ('icarl', 13, 'task 0, fetch 2'),
    # Beside 12 examples each epoch visits 8 stored ones: 10 steps of training.
    ('icarl', 24, 'task 1, train 5'),
    ('icarl', 33, 'task 1, herd'),
    ('icarl', 35, 'task 1, fetch 2'),
    ('sema', 5, 'task 0, decide'),
    ('sema', 13, 'task 0, describe 2'),
    ('sema', 34, 'task 1, describe 2'),
  ],
)
def test_interruptions_do_not_show(name, tick, where, whole, interrupt, tmp_path):
  interrupt(tick)
  with pytest.raises(Stopped, match=where):
    run(EXPERIMENTS[name](), tmp_path, silent(save_every=1e9))
  interrupt(None)
  run(EXPERIMENTS[name](), tmp_path, silent(save_every=1e9))
  assert outcome(tmp_path) == whole(name)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_phase_is_compiled_once(name, whole):
  counts = whole(name)['results']['compilations']
  own = {'icarl': {'herd', 'fetch'}, 'sema': {'prepare', 'decide', 'describe'}}[name]
  assert own <= set(counts) and set(counts.values()) == {1}
