import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual import flycl
from pecft_jax.continual.core import normalised
from pecft_jax.continual.statistics.flycl import sparse_draw
from pecft_jax.peft import lora
from pecft_jax.typing import Capacity

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, frozen_of

M, KEPT, RIDGES = 31, 7, (1e-2, 1e-1, 1.0, 10.0, 100.0)


@pytest.fixture(scope='module')
def learned():
  """The method after two tasks of 40 and 26 examples, and its batches."""
  method = flycl(
    TOY, CAPACITY, projection=M, links=3, kept=KEPT / M + 1e-6, ridges=RIDGES, sample=50
  )
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  tasks = []
  for t, count in enumerate((4, 2)):
    rows = [batch(TOY.inputs.shape, CLASSES[t], 10 * t + i, rows=13) for i in range(count)]
    tasks.append(
      [each._replace(index=np.arange(13 * i, 13 * i + 13)) for i, each in enumerate(rows)]
    )
    for each in tasks[-1]:
      memory = method.consolidate(params, memory, env(frozen, t), each)
    params, memory = method.end_task(params, memory, env(frozen, t))
  return method, frozen, params, memory, tasks


def codes(frozen, memory, rows):
  """Codes of the valid examples of batches in float64, by sorting; and their one-hot labels."""
  x = np.concatenate([each.x[each.valid] for each in rows])
  y = np.concatenate([each.y[each.valid] for each in rows])
  f = np.asarray(TOY.apply(frozen, normalised(TOY.inputs, x)).pooled, np.float64)
  z = f @ np.asarray(memory['draw'], np.float64)
  for row in z:
    row[np.argsort(row)[:-KEPT]] = 0
  return z, np.eye(7)[y]


def least_error(h, y):
  """The ridge with the least error of generalised cross-validation, by the influence matrix."""
  n, errors = len(h), []
  for ridge in RIDGES:
    influence = h @ np.linalg.solve(h.T @ h + ridge * np.eye(M), h.T)
    residual = y - influence @ y
    errors.append((residual**2).sum() / n / (1 - np.trace(influence) / n) ** 2)
  return RIDGES[int(np.argmin(errors))], sorted(errors)


def test_weights_are_those_of_one_regression_on_all_codes_in_float64(learned):
  _, frozen, _, memory, tasks = learned
  h, y = codes(frozen, memory, sum(tasks, []))
  last, last_y = codes(frozen, memory, tasks[-1])
  ridge, errors = least_error(last, last_y)
  assert errors[1] > 1.001 * errors[0]  # Not decided by rounding.
  assert float(memory['ridge']) == pytest.approx(ridge)
  want = np.linalg.solve(h.T @ h + ridge * np.eye(M), h.T @ y)
  # Float32 sums, and a system that is conditioned by 1e3.
  np.testing.assert_allclose(memory['weights'], want, atol=2e-3 * np.abs(want).max())


def test_answers_are_those_of_codes_by_the_weights(learned):
  method, frozen, params, memory, tasks = learned
  rows = tasks[0][0]._replace(valid=np.ones(13, bool))
  h, _ = codes(frozen, memory, [rows])
  found = method.predict(params, memory, env(frozen, 2), rows.x)
  np.testing.assert_allclose(found, h @ np.asarray(memory['weights'], np.float64), atol=1e-4)


def test_each_unit_reads_as_many_features_as_it_has_links():
  draw = np.asarray(sparse_draw(jax.random.key(1), 20, 500, 6))
  assert ((draw != 0).sum(0) == 6).all()
  assert ((draw != 0).sum(1) > 100).all()  # Of 150 expected.
  assert draw[draw != 0].std() == pytest.approx(1, abs=0.05)
  assert (np.asarray(sparse_draw(jax.random.key(1), 3, 5, 6)) != 0).all()


def test_examples_of_the_sample_are_gone_after_a_task(learned):
  sample = learned[3]['sample']
  assert not np.asarray(sample.filled).any() and not np.asarray(sample.items[0]).any()


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'kept': 0.0}, 'kept'),
    ({'kept': 1.5}, 'share of 31 units'),
    ({'kept': 0.01}, 'at least one'),
    ({'links': 0}, 'links'),
    ({'ridges': (1.0, 0.1)}, 'ascending'),
    ({'ridges': ()}, 'ridges'),
    ({'ridges': (0.0, 1.0)}, 'positive'),
  ],
)
def test_options_that_mean_nothing_are_refused(options, match):
  with pytest.raises(ValueError, match=match):
    flycl(TOY, CAPACITY, **{'projection': M, 'kept': 0.3, **options})


def test_a_transform_is_trained_on_the_first_task_alone():
  method = flycl(TOY, CAPACITY, peft=lora('fc$', rank=2), projection=M, kept=0.5)
  assert [method.trains(t) for t in range(3)] == [True, False, False]
  assert not flycl(TOY, Capacity(3, 7), projection=M, kept=0.5).trains(0)
  assert jnp.isfinite(method.init(jax.random.key(0), frozen_of(TOY))[1]['weights']).all()
