"""Checkpoints come back as they were written, or are known not to."""

import os
import pathlib
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.sharding import one_device, tree_shardings
from pecft_jax.train.state import no_task
from pecft_jax.typing import Capacity, TrainState
from pecft_jax.workdir import checkpoint
from pecft_jax.workdir.checkpoint import Checkpoints, NotSaved
from pecft_jax.workdir.position import Position
from pecft_jax.workdir.stored import Damaged

# Reads of damaged files leave coroutines of orbax behind.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

POSITION = Position(task=1, phase='train', batch=3, tick=2, data={'next': 3})
POSITION.seeds[0].losses.append([0.1, 2, 4])


def make_state(seed: int, width: int = 300, dtype=jnp.float32) -> TrainState:
  """A state with a leaf of every kind."""
  k_params, k_memory, key = jax.random.split(jax.random.key(seed), 3)
  params = {'delta': jax.random.normal(k_params, (5, width)).astype(dtype)}
  memory = {'images': jax.random.randint(k_memory, (7, 3), 0, 255).astype(jnp.uint8)}
  opt_state = (jnp.zeros(()), None, {'m': -params['delta']})
  task = no_task(Capacity(2, 3))
  return TrainState(params, memory, opt_state, task, jnp.asarray(seed, jnp.int32), key)


STATES = {tick: jax.tree.map(jnp.asarray, make_state(tick)) for tick in (1, 2)}
SHARDINGS = tree_shardings(one_device(), STATES[1])


@pytest.fixture
def directory(tmp_path):
  """The checkpoints 1 and 2."""
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  for tick, state in STATES.items():
    checkpoints.save(tick, state, POSITION)
  checkpoints.wait()
  return tmp_path / 'checkpoints'


def _load(directory: pathlib.Path, tick: int = 2, like: TrainState = STATES[2]):
  return Checkpoints(directory).load(tick, like, tree_shardings(one_device(), like))


def _newest(directory: pathlib.Path):
  said, checkpoints = [], Checkpoints(directory)
  return checkpoints.newest(STATES[2], SHARDINGS, said.append), said, checkpoints.ticks()


def test_round_trip(directory):
  state, position = _load(directory)
  assert tree_sha256(state) == tree_sha256(STATES[2])
  assert position == POSITION
  chex.assert_trees_all_equal_structs(state, STATES[2])
  assert all(
    (a.dtype, a.sharding) == (b.dtype, sharding)
    for a, b, sharding in zip(
      jax.tree.leaves(state), jax.tree.leaves(STATES[2]), jax.tree.leaves(SHARDINGS), strict=True
    )
  )


def test_the_newest_is_found_by_number(directory):
  (state, _), said, ticks = _newest(directory)
  assert int(state.step) == 2
  assert (said, ticks) == ([], [1, 2])


def test_nothing_is_found_where_nothing_is(tmp_path):
  assert _newest(tmp_path / 'checkpoints') == (None, [], [])


def test_the_oldest_goes_when_the_newest_is_complete(directory):
  checkpoints = Checkpoints(directory)
  checkpoints.save(3, make_state(3), POSITION)
  assert {1, 2} <= set(checkpoints.ticks())
  checkpoints.wait()
  assert checkpoints.ticks() == [2, 3]


def test_a_saved_state_may_be_donated_at_once(tmp_path):
  overwrite = jax.jit(lambda state: jax.tree.map(lambda a: a * 0 + 7, state), donate_argnums=0)
  state = {'large': jnp.arange(2.0**20)}
  digest = tree_sha256(state)
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(1, state, POSITION)
  for _ in range(3):
    state = overwrite(state)
  checkpoints.wait()
  back, _ = checkpoints.load(1, state, tree_shardings(one_device(), state))
  assert tree_sha256(back) == digest


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (make_state(0, width=301), r'params/delta: expected \(\(5, 301\), .*stored \(\(5, 300\), '),
    (make_state(0, dtype=jnp.bfloat16), r"params/delta: expected .*'bfloat16'\), stored .*float32"),
    (make_state(0)._replace(memory={}), 'memory/images: expected nothing, stored'),
    (make_state(0)._replace(memory={'x': 1 * jnp.ones(1)}), 'memory/x: expected .*stored nothing'),
  ],
)
def test_another_state_is_refused_by_leaf(directory, like, message):
  with pytest.raises(ValueError, match=message) as info:
    _load(directory, like=like)
  assert not isinstance(info.value, Damaged)


def _truncate(path: pathlib.Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def _flip(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(data)


FILES = (
  '_CHECKPOINT_METADATA',
  'state/_METADATA',
  'state/manifest.ocdbt',
  'state/d/*',
  'state/array_metadatas/process_0',
)


@pytest.mark.parametrize('damage', [os.remove, _truncate, _flip])
@pytest.mark.parametrize('name', FILES)
def test_damage_to_any_file(directory, damage, name):
  for path in list((directory / '2').glob(name)):
    damage(path)
  (state, position), said, ticks = _newest(directory)
  assert position == POSITION
  if said:  # Found out, and the one before was used.
    assert 'checkpoint 2 ' in said[0]
    assert (int(state.step), ticks) == (1, [1])
    assert (directory.parent / 'damaged' / '2').is_dir()
  else:  # Without consequence: the file does not matter, or the checkpoint was not there at all.
    expected = STATES[ticks[-1]]
    assert tree_sha256(state) == tree_sha256(expected)


def test_every_flipped_byte_is_found(directory):
  rng = np.random.default_rng(0)
  paths = [path for path in (directory / '2').rglob('*') if path.is_file()]
  sizes = np.array([path.stat().st_size for path in paths], float)
  silent = 0
  for _ in range(40):
    path = paths[rng.choice(len(paths), p=sizes / sizes.sum())]
    whole = path.read_bytes()
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    try:
      state, position = _load(directory)
    except Damaged:
      pass
    else:
      silent += 1
      assert (tree_sha256(state), position) == (tree_sha256(STATES[2]), POSITION), path
    path.write_bytes(whole)
  assert silent < 40


def test_after_going_back_the_ticks_can_be_saved_again(directory):
  _flip(next((directory / '2').glob('state/d/*')))
  checkpoints = Checkpoints(directory)
  state, _ = checkpoints.newest(STATES[2], SHARDINGS, lambda text: None)
  assert int(state.step) == 1
  for tick in (2, 3):
    checkpoints.save(tick, make_state(tick), POSITION)
  checkpoints.wait()
  assert int(_newest(directory)[0][0].step) == 3
  assert _newest(directory)[2] == [2, 3]


def test_where_all_are_damaged_nothing_is_moved(directory):
  for path in directory.glob('*/state/d/*'):
    _flip(path)
  with pytest.raises(Damaged, match=r'no checkpoint in .* is good: checkpoint 2 .*; checkpoint 1 '):
    _newest(directory)
  assert sorted(os.listdir(directory)) == ['1', '2']
  assert not (directory.parent / 'damaged').exists()


def test_an_unfinished_write_is_not_there(directory):
  for half in ('3.orbax-checkpoint-tmp-0', '0.deleted'):
    (directory / half).mkdir()
    (directory / half / 'd').write_bytes(b'x')
  assert _newest(directory)[2] == [1, 2]
  assert sorted(os.listdir(directory)) == ['1', '2']


def test_a_save_returns_before_the_digest_is_made(tmp_path, monkeypatch):
  may_go_on = threading.Event()

  def digest(tree):
    assert may_go_on.wait(20)
    return tree_sha256(tree)

  monkeypatch.setattr(checkpoint, 'tree_sha256', digest)
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(2, STATES[2], POSITION)
  assert checkpoints.ticks() == []
  may_go_on.set()
  checkpoints.wait()
  state, _ = checkpoints.load(2, STATES[2], SHARDINGS)
  assert tree_sha256(state) == tree_sha256(STATES[2])


class _FullDisk:
  """What `save_async` gives back where the write then fails."""

  def result(self):
    raise OSError('no space left on device')


def test_a_failed_write_is_raised_and_deletes_nothing(directory, monkeypatch):
  checkpoints = Checkpoints(directory)
  monkeypatch.setattr(ocp, 'save_async', lambda *_, **__: _FullDisk())
  checkpoints.save(3, make_state(3), POSITION)
  with pytest.raises(NotSaved, match=r'checkpoint 3 .*no space left.*resumes from checkpoint 2'):
    checkpoints.wait()
  assert checkpoints.ticks() == [1, 2]


def test_a_checkpoint_found_alone_tells_what_it_belongs_to(tmp_path):
  identity = {'benchmark': 'b', 'backbone_sha256': 'c'}
  checkpoints = Checkpoints(tmp_path / 'checkpoints', identity=identity)
  checkpoints.save(1, STATES[1], POSITION)
  checkpoints.wait()
  assert ocp.metadata(tmp_path / 'checkpoints' / '1').custom_metadata['identity'] == identity
