"""Child-Tuning: random masks of gradients, and entries by squared gradients of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import after_updates, by_hand, passed

from pecft_jax.peft import child_tuning_d, child_tuning_f, full
from pecft_jax.peft.selective.child_tuning import thinned

KERNEL, BIAS = 'block_0/attn/q/kernel', 'block_0/attn/q/bias'
PARAMS = {'fc': {'w': jnp.ones((40, 50)), 'b': jnp.arange(30.0)}}
GRADIENT = {
  'fc/w': np.random.default_rng(0).normal(size=(40, 50)),
  'fc/b': np.random.default_rng(1).normal(size=30),
}


def gradients(peft, delta, key):
  """Of a loss whose gradients are known."""

  def loss(delta):
    noisy = delta if key is None else peft.with_dropout(delta, key)
    new = peft.replace(noisy, PARAMS)
    return sum((new['fc'][name] * GRADIENT[f'fc/{name}']).sum() for name in 'wb')

  return jax.grad(loss)(delta)


def test_gradients_are_masked_and_divided_by_the_share():
  peft = child_tuning_f(share=0.25)
  delta = peft.init(jax.random.key(0), [], PARAMS)
  found = gradients(peft, delta, jax.random.key(1))
  for name, grad in found.items():
    kept = np.asarray(grad) != 0
    want = np.where(kept, GRADIENT[name] / 0.25, 0)
    np.testing.assert_allclose(grad, want, rtol=1e-5)
  share = np.mean(np.asarray(found['fc/w']) != 0)
  assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_each_key_and_each_leaf_has_a_mask_of_its_own():
  peft = child_tuning_f(share=0.5)
  delta = peft.init(jax.random.key(0), [], PARAMS)
  once, again, other = (gradients(peft, delta, jax.random.key(seed)) for seed in (1, 1, 2))
  masks = [np.asarray(each['fc/w']) != 0 for each in (once, again, other)]
  assert (masks[0] == masks[1]).all() and 0.4 < (masks[0] != masks[2]).mean() < 0.6
  bias = np.asarray(once['fc/b']) != 0
  assert (masks[0].reshape(-1)[:30] != bias).any()


def test_values_are_those_of_the_weights_and_without_a_key_so_are_gradients():
  peft = child_tuning_f(share=0.5)
  delta = peft.init(jax.random.key(0), [], PARAMS)
  new = peft.replace(peft.with_dropout(delta, jax.random.key(1)), PARAMS)
  jax.tree.map(np.testing.assert_array_equal, new, PARAMS)
  for name, grad in gradients(peft, delta, None).items():
    np.testing.assert_allclose(grad, GRADIENT[name], rtol=1e-6)


def test_the_mean_of_masked_gradients_is_the_gradient():
  keys = jax.random.split(jax.random.key(0), 4000)
  loss = lambda x, key: (thinned(x, key, 0.3) ** 2).sum()
  grads = jax.vmap(jax.grad(loss), (None, 0))(jnp.array([1.0, -2.0]), keys)
  np.testing.assert_allclose(grads.mean(0), [2, -4], rtol=0.1)


def test_updates_differ_from_those_of_all_weights_and_train():
  some, all_ = (after_updates(child_tuning_f(share=p), 2)[-1] for p in (0.5, 1.0))
  whole = after_updates(full(), 2)[-1]
  for name, leaf in whole.items():
    np.testing.assert_allclose(all_[name], leaf, atol=1e-6)
  assert np.abs(some[KERNEL] - whole[KERNEL]).max() > 1e-4


@pytest.fixture(scope='module')
def found():
  return passed(child_tuning_d('attn/q', share=0.2))


def test_the_statistics_are_squared_gradients_of_batches(found):
  for at, name in enumerate((KERNEL, BIAS)):
    want = sum(np.square(grads[at].mean(0)) for grads in by_hand())
    np.testing.assert_allclose(found[1][name], want, rtol=1e-4, atol=1e-7 * want.max())


def test_the_largest_entries_are_trained(found):
  kernel, bias = (sum(np.square(grads[at].mean(0)) for grads in by_hand()) for at in (0, 1))
  scores = np.concatenate([bias, kernel.reshape(-1)])  # By name.
  want = np.sort(np.argsort(-scores)[: round(0.2 * 72)])
  np.testing.assert_array_equal(found[2].index.value, want)


@pytest.mark.parametrize('factory', [child_tuning_f, child_tuning_d])
def test_a_share_of_nothing_is_refused(factory):
  with pytest.raises(ValueError, match=r'a share in \(0, 1\]'):
    factory(share=0.0)
  with pytest.raises(ValueError, match='no leaf matches'):
    factory('nowhere').init(jax.random.key(0), [], PARAMS)
