"""Classifier alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import aligned, finetune, ranpac, slca
from pecft_jax.peft import lora
from pecft_jax.recipes import sgd
from pecft_jax.schedules import constant

from ..tiny import CAPACITY, CLASSES, TOY, env, frozen_of, run, shaken

FC = lora('fc$', rank=2)
INNER = finetune(TOY, CAPACITY, peft=FC, masked=True)


def fit_of(method):
  return next(phase for phase in method.phases if phase.name == 'align')


def test_the_loss_is_that_of_draws_with_shrunk_means():
  """With spreads of zero every draw is its class's mean, and the loss is known."""
  method = aligned(INNER, samples=64, temperature=None, decay=0.2)
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  params = shaken(params, 2)
  known = memory['gaussians']
  mean = np.random.default_rng(1).normal(size=known.mean.shape)
  memory = {**memory, 'gaussians': known._replace(mean=jnp.float32(mean))}
  where, key = env(frozen, 1), jax.random.key(4)
  found = fit_of(method).loss(params, memory, where, None, key)
  seen = np.asarray(where.task.seen)
  y = np.asarray(
    jax.random.categorical(jax.random.split(key)[0], jnp.where(seen, 0.0, -jnp.inf), shape=(64,))
  )
  assert set(y) == set(np.flatnonzero(seen))  # All classes seen, and none else.
  shift = 0.8 + 0.2 * np.where(y < 2, 1 / 2, 1)
  head = jax.tree.map(lambda a: np.asarray(a, np.float64), params['head'])
  logits = (mean[y] * shift[:, None] @ head.kernel + head.bias)[:, seen]
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  np.testing.assert_allclose(found, -log_p[np.arange(64), y].mean(), rtol=1e-4)


def test_the_head_alone_is_trained_and_not_in_the_first_task():
  ran = run(aligned(INNER, samples=8), TOY)
  assert [s.task for s in ran.stages if s.name == 'align'] == [1, 1, 2, 2]
  for stage in ran.stages:
    if stage.name == 'align':
      before, after = ran.before(stage).params, stage.state.params
      assert not np.array_equal(before['head'].kernel, after['head'].kernel)
      same = jax.tree.map(np.array_equal, before['delta'], after['delta'])
      assert all(jax.tree.leaves(same))


def test_gaussians_of_past_classes_stand_still():
  ran = run(aligned(INNER, samples=8), TOY)
  first, last = (ran.last('gaussians', t).state.memory['gaussians'] for t in (0, 2))
  for old, new in zip(first, last, strict=True):
    np.testing.assert_array_equal(old[np.array(CLASSES[0])], new[np.array(CLASSES[0])])
  assert np.asarray(last.count)[: sum(map(len, CLASSES))].all()


def test_an_epoch_visits_as_many_batches_as_classes_were_seen():
  phase = fit_of(aligned(INNER, epochs=3, samples=8))
  assert phase.steps(env(None, 1).task) == 3 * 5


def test_slca_is_aligned_full_fine_tuning():
  method = slca(TOY, CAPACITY, samples=8)
  assert method.name == 'slca'
  params, _ = method.init(jax.random.key(0), frozen_of(TOY))
  assert set(params['delta']) == {'block_0/fc/kernel', 'block_0/fc/bias'}
  assert [phase.name for phase in method.phases] == ['gaussians', 'align']


def test_methods_without_a_head_and_odd_numbers_are_refused():
  with pytest.raises(ValueError, match='aligned has no effect on ranpac'):
    aligned(ranpac(TOY, CAPACITY, peft=FC, projection=9))
  with pytest.raises(ValueError, match='needs a method with a head'):
    aligned(INNER._replace(head=None))
  with pytest.raises(ValueError, match='temperature must be positive'):
    aligned(INNER, temperature=0.0)


def test_a_recipe_of_ones_own_is_taken():
  recipe = sgd(0.5, schedule=constant)
  assert fit_of(aligned(INNER, recipe=recipe)).recipe is recipe
