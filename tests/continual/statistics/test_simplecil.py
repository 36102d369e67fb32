import jax
import numpy as np

from pecft_jax.continual import simplecil
from pecft_jax.continual.core import frozen_features

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of


def learnt(frozen):
  method = simplecil(TOY, CAPACITY)
  params, memory = method.init(jax.random.key(0), frozen)
  batches = []
  for t in range(3):
    for i in range(2):
      batches.append(batch(TOY.inputs.shape, CLASSES[t], 10 * t + i))
      memory = method.consolidate(params, memory, env(frozen, t), batches[-1])
  return method, params, memory, batches


def test_classifies_by_cosine_to_the_class_means():
  frozen = frozen_of(TOY)
  method, params, memory, batches = learnt(frozen)
  x = np.concatenate([b.x[b.valid] for b in batches])
  y = np.concatenate([b.y[b.valid] for b in batches])
  features = np.asarray(frozen_features(TOY, frozen, x), np.float64)
  means = np.stack([features[y == c].mean(0) if (y == c).any() else np.zeros(6) for c in range(7)])
  direction = lambda a: a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-6)
  test = batch(TOY.inputs.shape, range(7), 77).x
  found = method.predict(params, memory, env(frozen, 2), test)
  query = np.asarray(frozen_features(TOY, frozen, test), np.float64)
  np.testing.assert_allclose(found, direction(query) @ direction(means).T, atol=1e-5)
  np.testing.assert_array_equal(memory.counts, np.bincount(y, minlength=7))


def test_trains_nothing():
  method = simplecil(TOY, CAPACITY)
  params, _ = method.init(jax.random.key(0), frozen_of(TOY))
  assert not jax.tree.leaves(params)
  assert not any(method.trains(t) for t in range(3))
