import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_steps import CAPACITY, RECIPE, backbone_of, frozen_of

from pecft_jax.catalog import method_by_name
from pecft_jax.paths import tree_bytes
from pecft_jax.plan import abstract_layout, plan, stored_as
from pecft_jax.plan.estimate import abstract_state
from pecft_jax.plan.memory import gathered, held
from pecft_jax.train import fsdp, tensor_parallel
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch


def planned(peft='lora', method='finetune', axes=None, rules=(), **options):
  learner = method_by_name(method, backbone_of('small'), CAPACITY, peft=peft)
  layout = abstract_layout(axes or {'data': 1}, rules)
  frozen = frozen_of('small')
  return plan(learner, backbone_of('small'), frozen, RECIPE, batch_size=8, layout=layout, **options)


def test_lines_are_the_bytes_of_a_real_state():
  backbone = backbone_of('small')
  frozen = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frozen_of('small'))
  method = method_by_name('ease', backbone, CAPACITY)
  init = jax.jit(lambda frozen: init_state(method, RECIPE, jax.random.key(1), frozen))
  state = init(frozen)
  lines = held(abstract_layout({'data': 1}), state, frozen)
  count = lambda tree: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
  assert lines == {
    'frozen': count(frozen),
    'trained': count(state.params),
    'optimizer': count(state.opt_state),
    'continual': count(state.memory),
    'record': count((state.task, state.step, state.key)),
  }


def test_full_fine_tuning_with_adam_is_16_bytes_a_parameter_beside_the_frozen_weights():
  memory, parameters = (
    planned('full').memory,
    sum(a.size for a in jax.tree.leaves(frozen_of('small'))),
  )
  head = 96 * 12 + 12
  updated = memory.trained + memory.gradients + memory.optimizer
  assert memory.frozen == 4 * parameters
  assert updated == 16 * (parameters + head) + 4  # Adam counts its steps.
  assert planned('full', frozen_dtype=jnp.bfloat16).memory.frozen == 2 * parameters


def test_the_total_is_the_sum_of_the_lines():
  memory = planned('lora', 'ease').memory
  assert memory.total == sum(memory)


def test_devices_share_the_batch_and_what_comes_of_it():
  one, four = planned().memory, planned(axes={'data': 4}).memory
  assert four.frozen == one.frozen
  assert 4 * four.batch == one.batch
  # What does not depend on the batch, as weights in another layout, stays.
  assert one.activations / 4 <= four.activations < one.activations / 2


def test_rules_split_what_they_name():
  whole = planned().memory
  both = planned(axes={'data': 2, 'model': 4}, rules=(*tensor_parallel(), *fsdp())).memory
  assert whole.frozen / 8 < both.frozen < whole.frozen / 2


def test_of_split_weights_one_is_whole_at_a_time():
  layout, frozen = abstract_layout({'data': 8}, fsdp()), frozen_of('small')
  assert gathered(layout, frozen) == 4 * 96 * 4 * 96  # An MLP's.
  assert gathered(abstract_layout({'data': 8}), frozen) == 0


def test_a_mesh_needs_an_axis_for_the_batch():
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    abstract_layout({'model': 2})
  with pytest.raises(ValueError, match='batch_size 8 cannot be split over the 3 devices'):
    planned(axes={'data': 3})


def test_only_floating_point_weights_change_their_type():
  tree = {'a': jax.ShapeDtypeStruct((3,), jnp.float32), 'n': jax.ShapeDtypeStruct((3,), jnp.int32)}
  assert tree_bytes(stored_as(tree, jnp.bfloat16)) == 3 * 2 + 3 * 4
  assert tree_bytes(stored_as(tree, None)) == 2 * 3 * 4


def test_a_step_runs_on_weights_in_half_the_bytes():
  frozen = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.bfloat16), frozen_of('small'))
  method = method_by_name('finetune', backbone_of('small'), CAPACITY, peft='linear_probe')
  rows, seen = jnp.arange(2), jnp.ones(12, bool)
  batch = Batch(jnp.zeros((2, 32, 32, 3), jnp.uint8), rows, jnp.ones(2, bool), rows)

  def run(frozen, batch):
    state = init_state(method, RECIPE, jax.random.key(1), frozen)
    state = state._replace(task=state.task._replace(classes=seen, seen=seen))
    return train_step(method, RECIPE, state, frozen, batch)

  after, log = jax.jit(run)(frozen, batch)
  assert log.finite
  planned_bytes = tree_bytes(abstract_state(method, RECIPE, stored_as(frozen, None)))
  assert tree_bytes(after) == planned_bytes
