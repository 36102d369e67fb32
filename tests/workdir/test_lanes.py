"""Directories of experiments that were run side by side."""

import json
import pathlib

import pytest

from pecft_jax.workdir.lanes import lane_of, names_beside


def directory_of(path, config, *, checkpoints=False):
  """Writes what decides: a config.json, and where the checkpoints are."""
  (path / 'checkpoints' if checkpoints else path).mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps(config))
  return path


@pytest.fixture
def orders(tmp_path):
  """Two orders side by side, in a directory of an odd name."""
  together = {'orders_together': ['natural', 'seed_7']}
  top = directory_of(tmp_path / 'ä run', together, checkpoints=True)
  for seed, name in enumerate(together['orders_together']):
    directory_of(top / name, {**together, 'seed': seed})
  return top


def test_one_of_several_has_its_checkpoints_beside_it(orders, monkeypatch):
  lane = lane_of(orders / 'seed_7')
  assert (lane.record, lane.directory, lane.index) == (orders / 'seed_7', orders, 1)
  assert lane.config['seed'] == 1
  monkeypatch.chdir(orders / 'seed_7')
  here = lane_of(pathlib.Path('.'))
  assert (here.directory, here.index) == (orders, 1)
  monkeypatch.chdir(orders.parent)
  assert lane_of(pathlib.Path('ä run', 'natural')).index == 0


def test_a_directory_that_was_moved_away_stands_alone(orders, tmp_path):
  (orders / 'natural').rename(tmp_path / 'natural')
  assert names_beside(tmp_path / 'natural') == []
  assert lane_of(tmp_path / 'natural').index is None


def test_what_is_meant_must_be_said(orders, tmp_path):
  with pytest.raises(ValueError, match=r"orders \['natural', 'seed_7'\]: name the directory"):
    lane_of(orders)
  with pytest.raises(ValueError, match='has seed 1 alone, got 5'):
    lane_of(orders / 'seed_7', 5)
  seeds = directory_of(tmp_path / 'seeds', {'seeds_together': [3]}, checkpoints=True)
  assert lane_of(seeds, 3).index == 0
  with pytest.raises(ValueError, match=r'has seeds \[3\]: name one of them, got None'):
    lane_of(seeds)
  with pytest.raises(ValueError, match='no work directory of a run'):
    lane_of(tmp_path / 'nothing')
