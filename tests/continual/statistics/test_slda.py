import jax
import numpy as np
import pytest

from pecft_jax.continual import slda
from pecft_jax.continual.core import frozen_features

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of


def learnt(method, frozen, order=(0, 1, 2), backwards=False):
  params, memory = method.init(jax.random.key(0), frozen)
  hooks = {name: jax.jit(getattr(method, name)) for name in ('consolidate', 'end_task')}
  batches = []
  for t in order:
    for i in range(3)[:: -1 if backwards else 1]:
      batches.append(batch(TOY.inputs.shape, CLASSES[t], 10 * t + i, rows=13))
      memory = hooks['consolidate'](params, memory, env(frozen, t), batches[-1])
    params, memory = hooks['end_task'](params, memory, env(frozen, t))
  return params, memory, batches


@pytest.mark.parametrize('shrinkage', [1e-4, 0.1])
def test_answers_are_those_of_batch_lda_in_float64(shrinkage):
  frozen = frozen_of(TOY)
  method = slda(TOY, CAPACITY, shrinkage=shrinkage)
  params, memory, batches = learnt(method, frozen)
  x, y = (np.concatenate([getattr(b, name)[b.valid] for b in batches]) for name in ('x', 'y'))
  test = batch(TOY.inputs.shape, range(7), 77).x
  f, query = (np.asarray(frozen_features(TOY, frozen, a), np.float64) for a in (x, test))
  means = np.stack([f[y == c].mean(0) for c in range(7)])
  scatter = (f - means[y]).T @ (f - means[y])
  inverse = np.linalg.inv((1 - shrinkage) * scatter / len(f) + shrinkage * np.eye(6))
  want = query @ inverse @ means.T - np.einsum('cd,de,ce->c', means, inverse, means) / 2
  found = np.asarray(method.predict(params, memory, env(frozen, 2), test))
  # Scores are equal up to a number that all classes share.
  centred = lambda a: a - a.mean(1, keepdims=True)
  np.testing.assert_allclose(centred(found), centred(want), rtol=1e-3, atol=2e-3)


def test_the_order_of_examples_and_tasks_changes_nothing():
  frozen = frozen_of(TOY)
  method = slda(TOY, CAPACITY, shrinkage=1e-2)
  test = batch(TOY.inputs.shape, range(7), 77).x
  found = []
  for order, backwards in (((0, 1, 2), False), ((2, 0, 1), True)):
    params, memory, _ = learnt(method, frozen, order, backwards)
    found.append(method.predict(params, memory, env(frozen, 2), test))
  np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_class_without_examples_is_never_the_best():
  frozen = frozen_of(TOY)
  method = slda(TOY, CAPACITY)
  params, memory, _ = learnt(method, frozen, (0,))
  test = batch(TOY.inputs.shape, range(7), 77).x
  assert (np.argmax(method.predict(params, memory, env(frozen, 1), test), 1) < 2).all()


def test_without_shrinkage_a_covariance_may_be_singular():
  with pytest.raises(ValueError, match='shrinkage'):
    slda(TOY, CAPACITY, shrinkage=0.0)
