import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.memory.novelty import (
  Descriptor,
  Spread,
  bounded_errors,
  fresh_descriptor,
  reconstruction_errors,
  with_errors,
  z_scores,
)


def test_errors_are_those_of_a_linear_autoencoder():
  rng = np.random.default_rng(0)
  down, up = rng.normal(size=(6, 4)), rng.normal(size=(4, 6))
  b, c, x = rng.normal(size=4), rng.normal(size=6), rng.normal(size=(5, 6))
  want = (((x @ down + b) @ up + c - x) ** 2).mean(1)
  coder = Descriptor(*map(jnp.float32, (down, b, up, c)))
  np.testing.assert_allclose(reconstruction_errors(coder, jnp.float32(x)), want, rtol=1e-5)


def test_bounded_errors_are_those_of_an_autoencoder_of_sigmoids():
  rng = np.random.default_rng(3)
  down, up = rng.normal(size=(6, 4)), rng.normal(size=(4, 6))
  b, c, h = rng.normal(size=4), rng.normal(size=6), rng.normal(size=(5, 6))
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  s = sigmoid(h)
  want = ((sigmoid(np.maximum(s @ down + b, 0) @ up + c) - s) ** 2).mean(1)
  coder = Descriptor(*map(jnp.float32, (down, b, up, c)))
  np.testing.assert_allclose(bounded_errors(coder, jnp.float32(h)), want, rtol=1e-5)


def test_z_scores_are_deviations_from_the_errors_of_training():
  rng = np.random.default_rng(1)
  errors = rng.normal(3.0, 0.5, (2, 7))
  valid = np.array([True, True, False, True, True, True, True])
  spread = Spread(*(jnp.zeros(4) for _ in range(3)))
  for at in (0, 3):
    for rows in (slice(0, 4), slice(4, 7)):
      one = jnp.float32(errors[0 if at == 0 else 1, rows])
      spread = with_errors(spread, one, jnp.asarray(valid[rows]), jnp.arange(4) == at)
  new = rng.normal(3.0, 0.5, (4, 5))
  found = np.asarray(z_scores(spread, jnp.float32(new)))
  for at, row in ((0, 0), (3, 1)):
    own = errors[row][valid]
    np.testing.assert_allclose(found[at], np.abs(new[at] - own.mean()) / own.std(ddof=1), rtol=1e-4)
  assert not found[[1, 2]].any()  # They know no errors.


def test_a_fresh_descriptor_is_that_of_torch_linear_layers_without_biases():
  coder = fresh_descriptor(jax.random.key(0), 40, 9)
  for weights, rows in ((coder.down, 40), (coder.up, 9)):
    assert weights.shape[0] == rows and float(jnp.abs(weights).max()) <= rows**-0.5
    np.testing.assert_allclose(weights.std(), rows**-0.5 / 3**0.5, rtol=0.15)
  assert not coder.down_bias.any() and not coder.up_bias.any()
