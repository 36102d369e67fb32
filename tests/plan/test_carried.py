import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_steps import RECIPE, backbone_of, frozen_of
from tinies import OF_CLASSES

from pecft_jax.catalog import method_by_name
from pecft_jax.paths import tree_bytes
from pecft_jax.plan import carried_bytes, checkpoint_bytes, growth
from pecft_jax.plan.carried import LEAF_METADATA
from pecft_jax.train.state import init_state
from pecft_jax.typing import Capacity
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.position import Position

OPTIONS = {'ranpac': {'projection': 48}}


def build(name, tasks, wrap=()):
  capacity = Capacity(tasks, 2 * tasks)
  return method_by_name(name, backbone_of('small'), capacity, wrap=wrap, options=OPTIONS)


@pytest.mark.parametrize('name', OF_CLASSES)
def test_what_is_carried_is_what_a_real_state_holds(name):
  frozen = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frozen_of('small'))
  method = build(name, 7)
  params, memory = jax.jit(method.init)(jax.random.key(0), frozen)
  real = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((params, memory)))
  assert carried_bytes(method, frozen_of('small')) == real


def test_a_head_grows_by_its_columns():
  found = growth(lambda tasks: build('finetune', tasks), frozen_of('small'))
  assert list(found) == [1, 10, 100]
  assert found[100] - found[10] == 90 * 2 * (96 + 1) * 4


def test_a_bank_grows_by_a_lora_for_each_task():
  found = growth(lambda tasks: build('olora', tasks), frozen_of('small'), (1, 2, 5))
  lora = 2 * 2 * 2 * (96 * 8) * 4  # Layers, q and v, A and B.
  assert found[2] - found[1] == lora + 2 * (96 + 1) * 4
  assert found[5] - found[2] == 3 * (found[2] - found[1])


def test_ewc_carries_three_more_copies_and_a_count():
  plain, held = (
    carried_bytes(build('finetune', 5, wrap), frozen_of('small')) for wrap in ((), ('ewc',))
  )
  assert held == 4 * plain + 4


@pytest.mark.parametrize('name', ['finetune', 'ease', 'ranpac'])
def test_a_checkpoint_on_disk_is_at_most_as_large_and_little_smaller(tmp_path, name):
  frozen = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frozen_of('small'))
  make = jax.jit(lambda key, frozen: init_state(build(name, 3), RECIPE, key, frozen))
  rng = np.random.default_rng(0)
  # Trained numbers hardly compress; zeros would.
  noise = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype) if a.dtype == jnp.float32 else a
  state = jax.tree.map(noise, make(jax.random.key(0), frozen))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, Position())
  checkpoints.wait()
  files = {path: path.stat().st_size for path in tmp_path.rglob('*') if path.is_file()}
  arrays = sum(size for path, size in files.items() if path.parent.name == 'd')
  total, leaves = sum(files.values()), len(jax.tree.leaves(state))
  assert 0.9 * tree_bytes(state) <= total <= checkpoint_bytes(state)
  assert total - arrays <= LEAF_METADATA * leaves
