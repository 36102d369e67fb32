import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import finetune, joint
from pecft_jax.peft import linear_probe, lora
from pecft_jax.recipes import sgd
from pecft_jax.typing import Given

from ..tiny import CAPACITY, CLASSES, TOY, batch, close, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)


@pytest.mark.parametrize('masked', [False, True])
def test_loss_is_the_mean_cross_entropy_over_the_right_classes(masked):
  method = finetune(TOY, CAPACITY, peft=FC, masked=masked)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  some = batch(TOY.inputs.shape, CLASSES[1], 0)
  loss, out = method.loss(params, memory, env(frozen, 1), some, jax.random.key(1))
  classes = CLASSES[1] if masked else CLASSES[0] + CLASSES[1]
  log_p = jax.nn.log_softmax(out.logits[:, list(classes)])
  right = log_p[np.arange(5), [classes.index(c) for c in some.y]]
  np.testing.assert_allclose(loss, -right[some.valid].mean(), rtol=1e-6)


def test_the_start_favours_no_class():
  method = finetune(TOY, CAPACITY, peft=FC)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  logits = method.predict(params, memory, env(frozen, 2), batch(TOY.inputs.shape, (0,), 0).x)
  assert not np.asarray(logits).any()


def test_joint_training_starts_anew_with_each_task_on_all_data():
  method = joint(TOY, CAPACITY, peft=FC)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  fresh, _ = method.begin_task(shaken(params, 5), memory, env(frozen, 1), jax.random.key(0))
  equal(fresh, params)
  assert method.cumulative and not finetune(TOY, CAPACITY, peft=FC).cumulative


def test_features_are_what_the_head_reads():
  method = finetune(TOY, CAPACITY, peft=FC)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  out = method.forward(params, memory, env(frozen, 0), batch(TOY.inputs.shape, (0,), 0).x, None)
  want = out.features @ params['head'].kernel + params['head'].bias
  np.testing.assert_allclose(out.logits, want, atol=1e-6)
  assert not jnp.any(out.aux_loss)


@pytest.mark.parametrize('build', [finetune, joint])
def test_a_linear_probe_learns_the_same_from_cached_features(build):
  method = build(TOY, CAPACITY, peft=linear_probe())
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 5)
  some = batch(TOY.inputs.shape, CLASSES[0], 0)
  cached = some._replace(x=Given(some.x, method.query(frozen, some.x)))

  def update(batch):
    loss = lambda params: method.loss(params, memory, env(frozen, 0), batch, None)[0]
    return jax.value_and_grad(loss)(params)

  close(update(cached), update(some), atol=1e-6)
  # The images are not even looked at.
  blank = cached._replace(x=cached.x._replace(x=np.zeros_like(some.x)))
  equal(update(blank), update(cached))


def test_there_is_nothing_to_cache_where_the_backbone_is_adapted():
  assert finetune(TOY, CAPACITY, peft=FC).query is None


def test_joint_training_brings_epochs_and_a_recipe_of_its_own():
  recipe = sgd(0.5)
  method = joint(TOY, CAPACITY, peft=FC, epochs=9, recipe=recipe)
  assert (method.epochs, method.recipe) == (9, recipe)
  assert method.settings['epochs'] == 9 and method.settings['recipe']['learning_rate'] == 0.5
  assert joint(TOY, CAPACITY, peft=FC).epochs is None
  with pytest.raises(ValueError, match='epochs must be at least 1'):
    joint(TOY, CAPACITY, peft=FC, epochs=0)
