"""One update, and the compiled functions around it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import TRAINING, tiny_experiment, tiny_frozen, tiny_method

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual.adapters.ease import ease
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.continual.statistics.ranpac import ranpac
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.sharding import one_device
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import Judged
from pecft_jax.recipes import adam, sgd
from pecft_jax.schedules import constant
from pecft_jax.train.batches import on_devices
from pecft_jax.train.schedule import task_arrays
from pecft_jax.train.state import init_state
from pecft_jax.train.step import compilations, compile_steps
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch, Capacity, Env

LAYOUT = one_device()


def _batch(rows, task=0):
  split = tiny_experiment().scenario.tasks[task].train
  rows = np.asarray(rows)
  x = split.inputs[split.rows[rows]]
  valid = np.ones(len(rows), bool)
  return jax.tree.map(jnp.asarray, Batch(x, split.labels[rows], valid, rows.astype(np.int32)))


def _begun(method, recipe, task=0):
  """A state at the start of a task."""
  state = init_state(method, recipe, jax.random.key(0), tiny_frozen())
  arrays = jax.tree.map(jnp.asarray, task_arrays(tiny_experiment(), method, task))
  return state._replace(task=arrays)


def _stepped(recipe, batches):
  method = tiny_method('finetune')
  state = _begun(method, recipe)
  step = jax.jit(lambda state, batch: train_step(method, recipe, state, tiny_frozen(), batch))
  for batch in batches:
    state, log = step(state, batch)
  return state, log


def test_micro_batches_are_one_large_batch():
  small = sgd(0.1, schedule=constant, accumulate=2)
  large = sgd(0.1, schedule=constant)
  parts = [_batch(rows) for rows in ([0, 7, 2, 9], [4, 11, 6, 1], [3, 8, 5, 10], [0, 1, 6, 7])]
  joined = [jax.tree.map(lambda *a: jnp.concatenate(a), *parts[i : i + 2]) for i in (0, 2)]
  (a, _), (b, _) = _stepped(small, parts), _stepped(large, joined)
  chex.assert_trees_all_close(a[0], b[0], rtol=1e-5, atol=1e-7)
  assert int(a.step), int(b.step) == (4, 2)


def test_padding_has_no_part_in_an_update():
  recipe = sgd(0.1)
  whole = _batch([0, 7, 2])
  padded = _batch([0, 7, 2, 5])._replace(valid=jnp.array([True, True, True, False]))
  (a, log), (b, padded_log) = _stepped(recipe, [whole]), _stepped(recipe, [padded])
  chex.assert_trees_all_close(a[0], b[0], rtol=1e-5, atol=1e-7)
  assert int(log.total) == int(padded_log.total) == 3
  assert log.loss == pytest.approx(float(padded_log.loss), rel=1e-6)


def test_the_rate_follows_the_task_and_not_the_run():
  seen = []

  def schedule(progress):
    jax.debug.callback(lambda p: seen.append(float(p)), progress, ordered=True)
    return jnp.ones_like(progress)

  recipe = sgd(0.1, schedule=schedule)
  method = tiny_method('finetune')
  state = _begun(method, recipe)
  start = jnp.int32(40)
  state = state._replace(step=start, task=state.task._replace(start=start, steps=jnp.int32(4)))
  for _ in range(3):
    state, _ = train_step(method, recipe, state, tiny_frozen(), _batch([0, 7]))
  jax.effects_barrier()
  assert seen == [0.0, 0.25, 0.5]


def test_the_log_tells_of_parameters_that_are_not_finite():
  _, good = _stepped(sgd(0.1), [_batch([0, 7])])
  assert bool(good.finite)
  _, bad = _stepped(sgd(3e38), [_batch([0, 7]), _batch([0, 7])])
  assert not bool(bad.finite)


def test_a_half_precision_backbone_keeps_whole_deltas_and_statistics():
  backbone = vit(
    image_size=4, channels=1, patch=2, width=8, depth=1, heads=2, mean=(0.5,), std=(0.5,),
    dtype=jnp.bfloat16,
  )  # fmt: skip
  peft, capacity, recipe = lora('attn/q$', rank=2), Capacity(2, 4), adam(0.1)
  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = jax.eval_shape(backbone.init, key)
  batch = jax.eval_shape(lambda: _batch([0, 7]))
  for method in (
    finetune(backbone, capacity, peft=peft),
    ease(backbone, capacity, peft=peft),
    ranpac(backbone, capacity, peft=peft, projection=16),
  ):
    state = jax.eval_shape(lambda k, f, m=method: init_state(m, recipe, k, f), key, frozen)
    step = lambda s, f, b, m=method: train_step(m, recipe, s, f, b)[0]
    gather = lambda s, f, b, m=method: s._replace(
      memory=m.consolidate(s.params, s.memory, Env(f, s.task), b)
    )
    assert 'bf16' in str(jax.make_jaxpr(step)(state, frozen, batch))
    functions = (step,) if method.consolidate is None else (step, gather)
    for after in (jax.eval_shape(fn, state, frozen, batch) for fn in functions):
      chex.assert_trees_all_equal_structs(after, state)
      for name, leaf in named_leaves(after):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.uint32, jnp.bool_), (name, leaf.dtype)


@pytest.fixture(scope='module')
def steps():
  method, recipe = tiny_method('finetune'), TRAINING.recipe
  return compile_steps(method, recipe, LAYOUT, tiny_frozen())


@pytest.fixture
def state(steps):
  return steps.init(jax.random.key(0), tiny_frozen())


def _put(batch, steps):
  return on_devices(jax.tree.map(np.asarray, batch), steps.batch_sharding)


def test_a_state_is_consumed(steps, state):
  method = tiny_method('finetune')
  after = steps.begin(state, tiny_frozen(), task_arrays(tiny_experiment(), method, 0))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, tiny_frozen())))


def test_a_task_begins_with_a_new_optimizer(steps, state):
  method, frozen = tiny_method('finetune'), tiny_frozen()
  state = steps.begin(state, frozen, task_arrays(tiny_experiment(), method, 0))
  fresh = tree_sha256(state.opt_state)
  state, _ = steps.train(state, frozen, _put(_batch([0, 7, 2, 9]), steps))
  assert tree_sha256(state.opt_state) != fresh
  state = steps.begin(state, frozen, task_arrays(tiny_experiment(), method, 1))
  assert tree_sha256(state.opt_state) == fresh
  assert int(state.task.start) == int(state.step) == 1


def test_predictions_are_counted(steps, state):
  method, frozen = tiny_method('finetune'), tiny_frozen()
  task = task_arrays(tiny_experiment(), method, 1)
  state = steps.begin(state, frozen, task)
  # Whatever the image: class 0 before class 3 before the others.
  bias = jnp.array([4.0, 1.0, 2.0, 3.0])
  head = state.params['head']
  state.params['head'] = head._replace(kernel=jnp.zeros_like(head.kernel), bias=bias)
  batch = _batch([0, 1, 6, 7, 8], task=1)._replace(y=jnp.array([2, 3, 3, 0, 3]))
  batch = batch._replace(valid=jnp.array([True, True, True, True, False]))
  zeros = Judged(*np.zeros((3, 2), np.int32), hits=np.zeros(steps.hits_shape, np.int32))
  classes = np.stack([task.classes, ~task.classes])  # Of two test sets, the second not counted.
  tables = jax.device_put((classes, np.array([True, False]), zeros), steps.counts_sharding)
  places = jax.device_put(np.array([0, 0, 0, 1, 1], np.int32), steps.batch_sharding)
  counts = steps.predict(state, frozen, _put(batch, steps), places, *tables)
  # Class 0 is right once, in the second set; among classes 2 and 3 of the task, 3 is twice.
  assert counts.score.tolist() == [0, 1]
  assert counts.aware.tolist() == [2, 1]
  assert counts.total.tolist() == [3, 1]
  assert counts.hits.tolist() == [[0, 0, 0, 0], [0, 0, 0, 2]]


def test_passes_that_do_nothing_are_not_compiled(steps):
  assert steps.prepare is None
  assert steps.consolidate is None
  assert steps.query is None
  assert compile_steps(tiny_method('l2p'), TRAINING.recipe, LAYOUT, tiny_frozen()).query is not None


def test_compilations_are_the_most_of_any_process(steps):
  ran = compilations(steps, {})
  assert compilations(steps, {'train': 3, 'query': 1}) == {**ran, 'train': 3, 'query': 1}
  assert set(ran) <= {'train', 'begin', 'predict'}
  assert set(ran.values()) <= {1}
