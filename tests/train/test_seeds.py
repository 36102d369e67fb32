"""Seeds side by side find what they find one by one."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import TRAINING, outcome, silent, tiny_experiment, tiny_method

from pecft_jax.devices.sharding import tree_shardings
from pecft_jax.paths import named_leaves
from pecft_jax.train import Stopped, one_device, run, run_seeds
from pecft_jax.train.state import init_state
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.inspection import inspect_run

SEEDS = (3, 4, 8)
# One batched product in the place of several may add in another order.
TOLERANCE = 1e-6


def _experiment(method, **fields):
  return tiny_experiment(method, training=TRAINING, **fields)


def _state(workdir, like):
  checkpoints = Checkpoints(workdir / 'checkpoints')
  shardings = tree_shardings(one_device(), like)
  return checkpoints.load(checkpoints.ticks()[-1], like, shardings)[0]


@pytest.mark.slow
def test_seeds_side_by_side_end_as_single_runs_do(tmp_path):
  """With all that is reported; for other methods, in test_common.py."""
  experiment = _experiment('derpp(olora)')
  found = run_seeds(experiment, SEEDS, tmp_path / 'all', silent())
  losses = set()
  for i, seed in enumerate(SEEDS):
    single = run(experiment.replace(seed=seed), tmp_path / str(seed), silent())
    one, other = outcome(tmp_path / str(seed)), outcome(tmp_path / f'all/seed_{seed}')
    for row, same in zip(one['rows'], other['rows'], strict=True):
      assert row.pop('loss', 0) == pytest.approx(same.pop('loss', 0), rel=1e-5)
      assert row == same
    for key in (
      'accuracy_matrix',
      'per_class_accuracy',
      'metrics',
      'seed',
      'identity',
      'status',
      'compilations',
    ):
      assert single[key] == found[i][key], key
    for key in ('trainable_parameters', 'carried_state_bytes', 'optimizer_state_bytes'):
      assert single['efficiency'][key] == found[i]['efficiency'][key], key
    config = json.loads((tmp_path / f'all/seed_{seed}/config.json').read_text())
    assert config.pop('seeds_together') == list(SEEDS)
    alone = json.loads((tmp_path / f'{seed}/config.json').read_text())
    assert config.pop('environment').keys() == alone.pop('environment').keys()
    assert config == alone
    losses.add(single['state_sha256'])
  assert len(losses) == len(SEEDS)  # They do differ from one another.


def test_the_states_are_equal(tmp_path):
  experiment = _experiment('finetune')
  run_seeds(experiment, (3, 4), tmp_path / 'all', silent())
  run(experiment.replace(seed=4), tmp_path / 'one', silent())
  method, recipe = experiment.method, experiment.training.recipe
  init = lambda key: init_state(method, recipe, key, experiment.frozen)
  one = jax.eval_shape(init, jax.random.key(0))
  both = jax.eval_shape(jax.vmap(init), jax.random.split(jax.random.key(0)))
  single = dict(named_leaves(_state(tmp_path / 'one', one)))
  for name, leaf in named_leaves(_state(tmp_path / 'all', both)):
    np.testing.assert_allclose(leaf[1], single[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_interruptions_do_not_show(interrupt, tmp_path):
  experiment = _experiment('derpp(finetune)')
  run_seeds(experiment, (0, 1), tmp_path / 'whole', silent())
  stops = 0
  for _ in range(100):
    interrupt(5)
    try:
      run_seeds(experiment, (0, 1), tmp_path / 'parts', silent())
      break
    except Stopped:
      stops += 1
  assert 2 < stops < 100
  for seed in (0, 1):
    assert outcome(tmp_path / f'parts/seed_{seed}') == outcome(tmp_path / f'whole/seed_{seed}')


def test_references_are_learnt_by_every_seed(tmp_path):
  experiment = _experiment('finetune', references={'joint': tiny_method('joint')})
  found = run_seeds(experiment, (0, 1), tmp_path, silent())
  for seed, each in zip((0, 1), found, strict=True):
    beside = json.loads((tmp_path / f'seed_{seed}/references/joint/results.json').read_text())
    assert each['references']['joint'] == beside['metrics']
    assert beside['seed'] == seed


def test_other_seeds_are_another_configuration(tmp_path):
  experiment = _experiment('finetune')
  run_seeds(experiment, (0, 1), tmp_path, silent())
  with pytest.raises(ValueError, match=r'seeds_together: there \[0, 1\], here \[0, 1, 2\]'):
    run_seeds(experiment, (0, 1, 2), tmp_path, silent())


@pytest.mark.parametrize('seeds', [(), (1, 1)])
def test_seeds_must_differ(seeds, tmp_path):
  with pytest.raises(ValueError, match='all different'):
    run_seeds(_experiment('finetune'), seeds, tmp_path)


def test_writers_belong_to_one_seed(tmp_path):
  with pytest.raises(ValueError, match='writers take the rows of one seed'):
    run_seeds(_experiment('finetune'), (0, 1), tmp_path, silent(writers=(print,)))


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_seeds_have_32_bits(seed, tmp_path):
  with pytest.raises(ValueError, match='seeds in 0'):
    run(_experiment('finetune', seed=seed), tmp_path)


def test_one_seed_and_several_do_not_share_a_directory(tmp_path):
  experiment = _experiment('finetune')
  run(experiment, tmp_path / 'one', silent())
  with pytest.raises(ValueError, match='seeds_together: there null'):
    run_seeds(experiment, (0, 1), tmp_path / 'one', silent())
  run_seeds(experiment, (0, 1), tmp_path / 'two', silent())
  with pytest.raises(ValueError, match='belongs to a run with another configuration'):
    run(experiment, tmp_path / 'two', silent())


def test_seeds_side_by_side_are_inspected_together(tmp_path):
  run_seeds(_experiment('finetune'), (3, 4), tmp_path, silent())
  found = inspect_run(tmp_path, arrays=True)
  assert (found['status'], found['seed'], found['finished']) == ('done', [3, 4], 2)
  assert not found['problems']
  rows = sum(len(outcome(tmp_path / f'seed_{seed}')['rows']) for seed in (3, 4))
  assert found['log']['rows'] == found['checkpoints'][-1]['rows'] == rows
