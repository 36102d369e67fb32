import functools

import jax
import jax.numpy as jnp
import pytest
from kinds import kinds_in_method, one_of_each
from plan_steps import CAPACITY, RECIPE, backbone_of, frozen_of
from tinies import OF_CLASSES

from pecft_jax.backbones import architecture
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.catalog import method_by_name
from pecft_jax.plan import abstract_layout, plan
from pecft_jax.train import fsdp, tensor_parallel


@functools.cache
def planned(method='finetune', peft=None, axes=(('data', 1),), wrap=(), model='small', **options):
  options = {'batch_size': 8, **options}
  learner = method_by_name(method, backbone_of(model), CAPACITY, peft=peft, wrap=wrap)
  layout = abstract_layout(dict(axes))
  return plan(learner, backbone_of(model), frozen_of(model), RECIPE, layout=layout, **options)


@pytest.mark.parametrize('method', one_of_each(OF_CLASSES, kinds_in_method))
def test_every_kind_of_method_can_be_planned(method):
  found = planned(method, model='one block')
  # GDumb stores examples, and trains on them once a task has ended.
  assert found.trains == (method not in {'simplecil', 'fecam', 'flycl', 'slda', 'gdumb'})
  assert found.step > 0.9 * found.predict or method == 'gdumb'
  assert found.memory.activations > 0
  # FeCAM and GDumb have parameters that no step of training changes.
  assert bool(found.trained_parameters) == (found.trains or method in {'fecam', 'flycl', 'gdumb'})


def test_a_step_is_shared_by_the_devices():
  one, four = planned(), planned(axes=(('data', 4),))
  assert four.step == pytest.approx(one.step / 4, rel=0.01)
  # Weights are read on each.
  assert one.traffic / 4 < four.traffic < one.traffic
  split = planned(axes=(('data', 2), ('model', 2)))
  assert split.step == pytest.approx(one.step / 4, rel=0.01)


def test_replay_costs_passes_over_what_is_replayed():
  one, replayed = planned(), planned(wrap=('derpp',))
  # Two draws as large as the batch beside it.
  assert replayed.step == pytest.approx(3 * one.step, rel=0.02)


def test_a_cached_query_saves_a_forward_pass():
  cached, anew = planned('l2p', cache_queries=True), planned('l2p')
  once = planned('finetune', 'linear_probe').predict
  assert anew.step - cached.step == pytest.approx(8 * once, rel=0.02)


def test_ease_predicts_with_a_pass_for_each_task():
  once = planned('finetune', 'adaptformer').predict
  assert planned('ease').predict == pytest.approx(3 * once, rel=0.02)


def test_half_the_bytes_of_weights_are_half_the_bytes():
  wide, narrow = planned(), planned(frozen_dtype=jnp.bfloat16)
  assert 2 * narrow.memory.frozen == wide.memory.frozen
  assert narrow.trained_parameters == wide.trained_parameters
  assert narrow.dtype == 'float32'  # The computation has its own dtype.


def test_recomputing_saves_activations_and_costs_a_forward_pass():
  sizes = {'vocabulary': 64, 'width': 32, 'depth': 6, 'heads': 4, 'kv_heads': 2, 'hidden': 88}
  found = {}
  for remat in (None, jax.checkpoint_policies.nothing_saveable):
    model = decoder(**sizes, length=24, remat=remat)
    method = method_by_name('finetune', model, CAPACITY, peft='lora')
    frozen = jax.eval_shape(model.init, jax.random.key(0))
    found[remat] = plan(method, model, frozen, RECIPE, batch_size=4)
  kept, again = found.values()
  assert (kept.unit, kept.units) == ('tokens', 24)
  assert again.memory.activations < kept.memory.activations / 2
  assert 1.2 * kept.step < again.step < 1.6 * kept.step


@pytest.mark.slow
def test_seven_billion_parameters_are_planned_without_making_them():
  model = architecture(
    'llama_2_7b', dtype=jnp.bfloat16, length=128,
    remat=jax.checkpoint_policies.nothing_saveable,
  )  # fmt: skip
  frozen = jax.eval_shape(model.init, jax.random.key(0))
  method = method_by_name('finetune', model, CAPACITY, peft='lora')
  rules = (*tensor_parallel(), *fsdp())
  found = plan(
    method, model, frozen, RECIPE, batch_size=4, frozen_dtype=jnp.bfloat16,
    layout=abstract_layout({'data': 4, 'model': 2}, rules),
  )  # fmt: skip
  # 6,738,415,616 parameters with its language-model head, 32,000 x 4,096, which is left out here.
  assert found.backbone_parameters == 6_738_415_616 - 32_000 * 4_096
  # The first rule that names a weight decides: all but the norms' scales are split in two.
  assert found.memory.frozen == pytest.approx(2 * found.backbone_parameters / 2, rel=1e-3)
  lora = 32 * 2 * (4096 * 8 + 8 * 4096)
  assert found.trained_parameters == lora + 4096 * 12 + 12
  # The last MLP is computed of one token a text. Recomputing leaves out the last product of each
  # block, which no gradient needs; no gradient goes through the first block's q, k and v.
  depth, square, mlp = 32, 4096**2, 4096 * 11008
  forward = depth * 4 * square + (depth - 1) * 3 * mlp
  again = depth * 4 * square + (depth - 1) * 2 * mlp
  backward = forward - 3 * square
  # Attention between 128 tokens, LoRA and the like are a hundredth.
  step = 2 * (forward + again + backward) * 4 * 128
  assert step < found.step * 8 < 1.02 * step
