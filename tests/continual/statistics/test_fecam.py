import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import fecam
from pecft_jax.continual.core import frozen_features
from pecft_jax.peft import lora

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of

FC = lora('fc$', rank=2)


def learnt(method, frozen, order=(0, 1, 2)):
  params, memory = method.init(jax.random.key(0), frozen)
  hooks = {name: jax.jit(getattr(method, name)) for name in ('consolidate', 'end_task')}
  batches = []
  for t in order:
    params, memory = method.begin_task(params, memory, env(frozen, t), jax.random.key(1))
    for i in range(3):
      batches.append(batch(TOY.inputs.shape, CLASSES[t], 10 * t + i, rows=13))
      memory = hooks['consolidate'](params, memory, env(frozen, t), batches[-1])
    params, memory = hooks['end_task'](params, memory, env(frozen, t))
  return params, memory, batches


def numpy_scores(f, y, query, features, tukey, g1=1.0, g2=1.0):
  """FeCAM from its equations, in float64."""
  unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
  power = lambda a: a if tukey is None else np.sign(a) * np.abs(a) ** tukey
  scale = unit if features == 'unit' else lambda a: a
  f, query = power(scale(f)), power(scale(query))
  scores = []
  for c in range(7):
    rows = f[y == c]
    mean, cov = rows.mean(0), np.cov(rows.T)
    off = cov[~np.eye(6, dtype=bool)].mean()
    cov = cov + g1 * np.diag(cov).mean() * np.eye(6) + g2 * off * (1 - np.eye(6))
    sd = np.sqrt(np.diag(cov))
    inverse = np.linalg.inv(cov / np.outer(sd, sd))
    gap = query - mean if features == 'unit' else unit(query) - unit(mean)
    scores.append(-np.einsum('bd,de,be->b', gap, inverse, gap))
  return np.stack(scores, 1)


@pytest.mark.parametrize('features, tukey', [('raw', None), ('unit', None), ('raw', 0.5)])
def test_scores_are_those_of_the_papers_equations(features, tukey):
  frozen = frozen_of(TOY)
  method = fecam(TOY, CAPACITY, features=features, tukey=tukey)
  params, memory, batches = learnt(method, frozen)
  x, y = (np.concatenate([getattr(b, name)[b.valid] for b in batches]) for name in ('x', 'y'))
  test = batch(TOY.inputs.shape, range(7), 77).x
  f, query = (np.asarray(frozen_features(TOY, frozen, a), np.float64) for a in (x, test))
  found = method.predict(params, memory, env(frozen, 2), test)
  want = numpy_scores(f, y, query, features, tukey)
  np.testing.assert_allclose(found, want, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize('covariance', ['full', 'shared', 'diagonal', 'low-rank'])
def test_the_order_of_tasks_changes_nothing(covariance):
  frozen = frozen_of(TOY)
  method = fecam(TOY, CAPACITY, covariance=covariance, rank=4)
  test = batch(TOY.inputs.shape, range(7), 77).x
  found = []
  for order in ((0, 1, 2), (2, 0, 1)):
    params, memory, _ = learnt(method, frozen, order)
    found.append(method.predict(params, memory, env(frozen, 2), test))
  np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_trains_a_delta_on_the_first_task_alone_and_only_if_there_is_one():
  assert [fecam(TOY, CAPACITY, peft=FC).trains(t) for t in range(3)] == [True, False, False]
  assert not any(fecam(TOY, CAPACITY).trains(t) for t in range(3))


def test_a_class_without_examples_is_never_nearest():
  frozen = frozen_of(TOY)
  method = fecam(TOY, CAPACITY)
  params, memory, _ = learnt(method, frozen, (0,))
  test = batch(TOY.inputs.shape, range(7), 77).x
  scores = method.predict(params, memory, env(frozen, 1), test)
  assert (jnp.argmax(scores, 1) < 2).all()


def test_without_shrinkage_nothing_could_be_inverted():
  with pytest.raises(ValueError, match='diagonal'):
    fecam(TOY, CAPACITY, diagonal=0.0)
