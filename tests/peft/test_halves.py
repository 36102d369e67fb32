"""Halves of a tree, and optimizers that touch one of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pecft_jax.peft import combine, mask_of, masked, partition

PARAMS = {'a': {'w': jnp.arange(1.0, 7).reshape(2, 3), 'b': jnp.ones(3)}, 'c': jnp.full(4, 2.0)}
GRADS = jax.tree.map(lambda leaf: 0.1 * leaf, PARAMS)
HALF = jnp.array([[True, False, True], [False, False, True]])


def updated(tx, steps=3, grads=GRADS):
  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(steps):
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_halves_have_holes_and_combine_again():
  mask = mask_of('^a/', PARAMS)
  trainable, frozen = partition(PARAMS, mask)
  assert trainable['c'] is None and frozen['a'] == {'w': None, 'b': None}
  assert len(jax.tree.leaves(trainable)) == 2
  for whole in (combine(trainable, frozen), combine(frozen, trainable)):
    chex.assert_trees_all_equal_structs(whole, PARAMS)
    chex.assert_trees_all_equal(whole, PARAMS)


def test_a_mask_may_be_a_prefix():
  trainable, _ = partition(PARAMS, {'a': True, 'c': False})
  assert len(jax.tree.leaves(trainable)) == 2 and trainable['c'] is None


def test_gradients_of_one_half():
  trainable, frozen = partition(PARAMS, mask_of('w$', PARAMS))
  loss = lambda half: sum((leaf**2).sum() for leaf in jax.tree.leaves(combine(half, frozen)))
  np.testing.assert_allclose(jax.grad(loss)(trainable)['a']['w'], 2 * PARAMS['a']['w'])


def test_a_leaf_cannot_be_in_both_halves():
  with pytest.raises(ValueError, match='both halves have a leaf'):
    combine(PARAMS, PARAMS)


def test_part_of_a_leaf_cannot_be_split_off():
  with pytest.raises(ValueError, match='one bool for each leaf'):
    partition(PARAMS, {'a': {'w': HALF, 'b': True}, 'c': False})


def test_an_unmatched_pattern_lists_the_leaves():
  with pytest.raises(ValueError, match="no leaf matches 'z'; leaves"):
    mask_of('z', PARAMS)


@pytest.mark.parametrize(
  'tx',
  [
    optax.adamw(0.1, weight_decay=0.5),
    optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9)),
    optax.lamb(0.1, weight_decay=0.5),
  ],
  ids=['adamw', 'momentum', 'lamb'],
)
def test_nothing_touches_what_is_frozen(tx):
  mask = {'a': {'w': HALF, 'b': False}, 'c': True}
  params, state = updated(masked(tx, mask))
  np.testing.assert_array_equal(params['a']['b'], PARAMS['a']['b'])
  moved = np.asarray(params['a']['w'] != PARAMS['a']['w'])
  np.testing.assert_array_equal(moved, HALF)
  assert (params['c'] != PARAMS['c']).all()
  for leaf in jax.tree.leaves(state):
    assert leaf.shape != (3,)  # No moments for a frozen leaf,
    if leaf.shape == (2, 3):
      assert not leaf[~HALF].any()  # and none for a frozen element.


def test_whole_leaves_fare_as_with_an_optimizer_of_their_own():
  tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1))
  params, _ = updated(masked(tx, {'a': False, 'c': True}))
  alone, state = {'c': PARAMS['c']}, tx.init({'c': PARAMS['c']})
  for _ in range(3):
    updates, state = tx.update({'c': GRADS['c']}, state, alone)
    alone = optax.apply_updates(alone, updates)
  np.testing.assert_allclose(params['c'], alone['c'], rtol=1e-6)


def test_frozen_elements_take_no_part_in_norms():
  tx = optax.clip_by_global_norm(1.0)
  grads = {'a': {'w': jnp.where(HALF, 0.1, 1e6), 'b': jnp.full(3, 1e6)}, 'c': jnp.full(4, 0.1)}
  tx = masked(tx, {'a': {'w': HALF, 'b': False}, 'c': True})
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates['c'], grads['c'])
  np.testing.assert_allclose(updates['a']['w'], jnp.where(HALF, 0.1, 0.0))
  assert not updates['a']['b'].any()


@pytest.mark.parametrize('pattern', ['(', '[a', '*', 'a{99999999999}'])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern):
  with pytest.raises(ValueError, match=r'pattern .* is no regular expression'):
    mask_of(pattern, {'bias': jnp.ones(2)})
