import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.product import product


@pytest.mark.parametrize('lead', [(), (5,), (2, 5), (2, 3, 5)])
def test_leading_axes_stay_what_they_are(lead):
  x, w = jax.random.normal(jax.random.key(0), (*lead, 7)), jnp.arange(21.0).reshape(7, 3)
  expected = np.tensordot(np.asarray(x, np.float64), np.asarray(w, np.float64), 1)
  # Sums of 7 terms up to 60 in float32.
  np.testing.assert_allclose(product(x, w), expected, atol=1e-4)


def test_the_dtype_is_that_of_the_activations():
  assert product(jnp.ones((2, 3, 5), jnp.bfloat16), jnp.ones((5, 4))).dtype == jnp.bfloat16


def test_both_gradients_are_products_of_two_matrices():
  loss = lambda x, w: jnp.square(product(x, w)).sum()
  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((2, 3, 5)), jnp.ones((5, 4)))
  products = [e for e in jaxpr.jaxpr.eqns if e.primitive is jax.lax.dot_general_p]
  assert len(products) == 3
  assert all(var.aval.ndim == 2 for e in products for var in e.invars)
