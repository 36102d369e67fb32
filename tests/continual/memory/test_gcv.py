import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.gcv import gcv_ridge
from pecft_jax.continual.memory.ridge import Examples

RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def problem(rows, width, noise, seed=0):
  """Labels [rows, 3] that are linear in features [rows, width], with noise."""
  rng = np.random.default_rng(seed)
  h = rng.normal(size=(rows, width))
  return h, h @ rng.normal(size=(width, 3)) / width**0.5 + noise * rng.normal(size=(rows, 3))


def by_leaving_one_out_on_average(h, y):
  """The same error by its definition: the influence matrix of each regression, in float64."""
  n, errors = len(h), []
  for ridge in RIDGES:
    influence = h @ np.linalg.inv(h.T @ h + ridge * np.eye(h.shape[1])) @ h.T
    residual = ((np.eye(n) - influence) @ y) ** 2
    errors.append(residual.sum() / n / (1 - np.trace(influence) / n) ** 2)
  return RIDGES[int(np.argmin(errors))]


@pytest.mark.parametrize(('rows', 'width'), [(40, 12), (20, 33)])
@pytest.mark.parametrize('noise', [0.01, 0.7, 4.0])
def test_the_ridge_is_that_of_the_definition(rows, width, noise):
  h, y = problem(rows, width, noise)
  padded = Examples(
    jnp.concatenate([jnp.asarray(h, jnp.float32), jnp.full((5, width), 9.0)]),
    jnp.concatenate([jnp.asarray(y, jnp.float32), jnp.full((5, 3), 9.0)]),
    jnp.arange(rows + 5) < rows,
  )
  found = gcv_ridge(padded, RIDGES, least=0.0)
  assert float(found) == pytest.approx(by_leaving_one_out_on_average(h, y))


def test_more_noise_takes_a_stronger_ridge():
  found = [
    float(gcv_ridge(Examples(*map(jnp.asarray, problem(40, 12, noise)), jnp.ones(40, bool)),
                    RIDGES, least=0.0))
    for noise in (0.01, 4.0)
  ]  # fmt: skip
  assert found[0] < found[1]


def test_ridges_that_are_lost_in_rounding_are_left_out():
  rows = Examples(*map(jnp.asarray, problem(40, 12, 0.01)), jnp.ones(40, bool))
  assert float(gcv_ridge(rows, RIDGES, least=5.0)) == 10
  assert float(gcv_ridge(rows, RIDGES, least=1e9)) == 1000
  none = rows._replace(valid=jnp.zeros(40, bool))
  assert float(gcv_ridge(none, RIDGES, least=0.0)) == 1000
