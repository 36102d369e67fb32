"""Moments of the inputs of a site against numpy in float64."""

import jax.numpy as jnp
import numpy as np

from pecft_jax.peft.input_moments import no_inputs, second_moment, with_inputs

X = np.random.default_rng(0).normal(3.0, 2.0, size=(9, 4, 5)).astype(np.float32)
VALID = np.arange(9) != 6


def test_batches_add_up_to_the_moments_of_all_valid_rows():
  moments = no_inputs(5)
  for at in (slice(4), slice(4, 9)):
    moments = with_inputs(moments, jnp.asarray(X[at]), jnp.asarray(VALID[at]))
  rows = np.float64(X[VALID]).reshape(-1, 5)
  centred = rows - rows.mean(0)
  assert moments.count == len(rows)
  np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(moments.scatter, centred.T @ centred, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(second_moment(moments), rows.T @ rows / len(rows), rtol=1e-5)


def test_a_batch_without_a_valid_example_changes_nothing():
  moments = with_inputs(no_inputs(5), jnp.asarray(X), jnp.asarray(VALID))
  again = with_inputs(moments, jnp.asarray(X[:2]), jnp.zeros(2, bool))
  for one, other in zip(moments, again, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
