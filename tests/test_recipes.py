"""Recipes against plain optax, over a whole task."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pecft_jax.recipes import adam, grouped, lora_plus, recipe, sgd, with_rates
from pecft_jax.schedules import constant, cosine, warmup

STEPS = 12
PARAMS = {'a': jnp.array([1.0, -2.0, 3.0]), 'b': jnp.array([[0.5, 0.1]])}
GRADS = [
  jax.tree.map(lambda p, i=i: jnp.sin(3.0 * i + p), PARAMS)  # Some that change from step to step.
  for i in range(STEPS)
]


def _ours(made, steps=STEPS, every=1):
  params, state = PARAMS, made.tx.init(PARAMS)
  for i in range(steps):
    progress = jnp.asarray(i / steps, jnp.float32)
    updates, state = made.tx.update(GRADS[i // every], state, params, progress=progress)
    params = optax.apply_updates(params, updates)
  return params


def _plain(tx, grads=tuple(GRADS)):
  params, state = PARAMS, tx.init(PARAMS)
  for grad in grads:
    updates, state = tx.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return params


def _schedule(peak):
  """The cosine as optax has it, over numbered steps."""
  return optax.cosine_decay_schedule(peak, STEPS)


def _close(a, b, rtol=2e-6):
  chex.assert_trees_all_close(a, b, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize(
  ('made', 'plain'),
  [
    (adam(0.1), optax.adam(_schedule(0.1))),
    (adam(0.1, weight_decay=0.05), optax.adamw(_schedule(0.1), weight_decay=0.05)),
    (adam(0.1, schedule=constant), optax.adam(0.1)),
    (sgd(0.1), optax.sgd(_schedule(0.1), momentum=0.9)),
    (sgd(0.1, momentum=0.5, schedule=constant), optax.sgd(0.1, momentum=0.5)),
    (adam(0.1, clip=0.3), optax.chain(optax.clip_by_global_norm(0.3), optax.adam(_schedule(0.1)))),
    (recipe(optax.scale_by_sign(), 0.1), optax.sign_sgd(_schedule(0.1))),
  ],
  ids=['adam', 'adamw', 'constant', 'sgd', 'momentum', 'clip', 'sign'],
)
def test_recipes_are_those_of_optax(made, plain):
  _close(_ours(made), _plain(plain))


def test_clipping_comes_before_the_direction():
  unclipped = _ours(sgd(0.1, schedule=constant))
  clipped = _ours(sgd(0.1, schedule=constant, clip=1e-3))
  moved = lambda params: optax.tree.norm(optax.tree.sub(params, PARAMS))
  assert moved(clipped) < 1e-2 * moved(unclipped)


@pytest.mark.parametrize('make', [adam, sgd])
def test_accumulated_micro_batches_are_one_batch(make):
  small = make(0.1, schedule=constant, accumulate=3, clip=0.3, weight_decay=0.1)
  large = make(0.1, schedule=constant, clip=0.3, weight_decay=0.1)
  # Three times the same gradient is one of the mean: 12 micro-batches, 4 updates.
  _close(_ours(small, every=3), _ours_of(large, GRADS[:4]))


def _ours_of(made, grads):
  params, state = PARAMS, made.tx.init(PARAMS)
  for grad in grads:
    updates, state = made.tx.update(grad, state, params, progress=jnp.zeros(()))
    params = optax.apply_updates(params, updates)
  return params


def test_accumulation_updates_with_the_mean():
  made = recipe(optax.identity(), 1.0, schedule=constant, accumulate=2)
  state = made.tx.init(PARAMS)
  total = jax.tree.map(jnp.zeros_like, PARAMS)
  for grad in GRADS[:2]:
    updates, state = made.tx.update(grad, state, PARAMS, progress=jnp.zeros(()))
    total = optax.tree.add(total, updates)
  _close(total, jax.tree.map(lambda a, b: -(a + b) / 2, *GRADS[:2]))


def test_accumulation_follows_the_schedule():
  made = recipe(optax.identity(), 1.0, schedule=lambda progress: 1 - progress, accumulate=2)
  state = made.tx.init(PARAMS)
  for progress in (0.0, 0.25):
    updates, state = made.tx.update(PARAMS, state, PARAMS, progress=jnp.asarray(progress))
  # As a batch as large as both, which would have come first.
  _close(updates, jax.tree.map(lambda p: -1.0 * p, PARAMS))


def test_what_is_left_over_at_the_end_of_a_task_is_used():
  made = recipe(optax.identity(), 1.0, schedule=constant, accumulate=5)
  state = made.tx.init(PARAMS)
  for i, weight in enumerate((3, 1)):
    updates, state = made.tx.update(
      GRADS[i], state, PARAMS, progress=jnp.zeros(()), weight=jnp.asarray(weight), last=i == 1
    )
  _close(updates, jax.tree.map(lambda a, b: -(3 * a + b) / 4, *GRADS[:2]))


@pytest.mark.parametrize('schedule', [constant, cosine, warmup(0.3, cosine)])
def test_micro_batches_follow_every_schedule_as_one_batch(schedule):
  small = adam(0.1, schedule=schedule, accumulate=3, clip=0.3, weight_decay=0.1)
  large = adam(0.1, schedule=schedule, clip=0.3, weight_decay=0.1)
  _close(_ours(small, every=3), _ours(large, steps=STEPS // 3))


@pytest.mark.parametrize('schedule', [cosine, warmup(0.3, cosine)])
def test_steps_that_are_no_multiple_follow_the_schedule_as_large_batches(schedule):
  made = recipe(optax.identity(), 1.0, schedule=schedule, accumulate=3)
  state, rates = made.tx.init(PARAMS), []
  for i in range(14):
    about = {'progress': jnp.float32(i / 14), 'last': i == 13, 'steps': jnp.int32(14)}
    updates, state = made.tx.update(PARAMS, state, PARAMS, **about)
    if updates['a'].any() or (i + 1) % 3 == 0 or i == 13:
      rates.append(-float(updates['a'][0]))
  np.testing.assert_allclose(rates, schedule(jnp.arange(5) / 5), rtol=1e-5)


def test_the_rate_for_the_log_is_the_rate_used():
  made = sgd(0.3, momentum=0.0)
  for progress in (0.0, 0.4):
    updates, _ = made.tx.update(
      PARAMS, made.tx.init(PARAMS), PARAMS, progress=jnp.asarray(progress)
    )
    rate = made.rate(jnp.asarray(progress))
    _close(updates, jax.tree.map(lambda p, rate=rate: -rate * p, PARAMS))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: adam(0.0), 'learning_rate must be positive, got 0'),
    (lambda: sgd(0.1, accumulate=0), 'accumulate must be at least 1, got 0'),
  ],
)
def test_impossible_settings_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_groups_have_rates_and_decays_of_their_own():
  """Against one optax chain for each group, on what both have in common: the global norm."""
  made = with_rates(adam(0.1, clip=0.3, weight_decay={'b$': 0.0, '.': 0.05}), 0.1, {'^a': 0.002})

  def plain(rate, decay):
    parts = optax.scale_by_adam(), optax.add_decayed_weights(decay)
    return optax.chain(*parts, optax.scale_by_learning_rate(_schedule(rate)))

  each = {'a': plain(0.002, 0.05), 'b': plain(0.1, 0.0)}
  tx = optax.chain(optax.clip_by_global_norm(0.3), optax.partition(each, {'a': 'a', 'b': 'b'}))
  _close(_ours(made), _plain(tx))
  assert made.factors == (('^a', pytest.approx(0.02)),)


def test_accumulation_is_the_same_within_groups():
  made = lambda every: grouped(adam(0.1, weight_decay=0.05, accumulate=every), {'^a': 0.02})
  _close(_ours(made(3), every=3), _ours(made(1), steps=STEPS // 3))


def test_a_rate_of_zero_freezes_a_group():
  after = _ours(with_rates(sgd(0.1), 0.1, {'b': 0.0}))
  np.testing.assert_array_equal(after['b'], PARAMS['b'])
  assert not np.array_equal(after['a'], PARAMS['a'])


def test_groups_that_match_nothing_or_come_twice_are_refused():
  with pytest.raises(ValueError, match='nowhere'):
    adam(0.1, weight_decay={'nowhere': 0.1}).tx.init(PARAMS)
  with pytest.raises(ValueError, match="weight_decay of 'a' must be at least 0"):
    adam(0.1, weight_decay={'a': -1.0})
  with pytest.raises(ValueError, match='groups of its own'):
    with_rates(grouped(adam(0.1), {'a': 0.1}), 0.1, {'b': 0.1})


def test_recipes_are_hashable_as_all_records_are():
  """Phases of methods hold them, and are keys."""
  made = grouped(adam(1e-2), {'^a': 0.5})
  assert len({made, made._replace(), adam(1e-2)}) == 2


def test_lora_plus_multiplies_the_rate_of_the_factors_b():
  params = {'delta': {'q': PARAMS}, 'head': {'b_kernel': jnp.ones(2)}}
  grads = jax.tree.map(jnp.ones_like, params)
  made = lora_plus(sgd(0.1, momentum=0.0, schedule=constant), 8.0)
  updates, _ = made.tx.update(grads, made.tx.init(params), params, progress=jnp.zeros(()))
  np.testing.assert_allclose(updates['delta']['q']['b'], -0.8, rtol=1e-6)
  for leaf in (updates['delta']['q']['a'], updates['head']['b_kernel']):
    np.testing.assert_allclose(leaf, -0.1, rtol=1e-6)


def test_lora_plus_is_refused_where_it_has_no_meaning():
  with pytest.raises(ValueError, match=r'ratio must be at least 1, got 0\.5'):
    lora_plus(adam(0.1), 0.5)
  with pytest.raises(ValueError, match='groups of its own'):
    lora_plus(grouped(adam(0.1), {'head': 2.0}))
  with pytest.raises(ValueError, match='no leaf matches'):
    lora_plus(adam(0.1)).tx.init({'a': jnp.ones(2)})
