import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.adapters.mixture import Expert, Mixture, gates


def test_the_router_weighs_the_experts_in_use_by_the_mean_token():
  rng = np.random.default_rng(2)
  column, bias, x = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=(5, 3, 6))
  active = np.array([True, False, True, True])
  mixture = Mixture(Expert(None, jnp.float32(column), jnp.float32(bias)), jnp.asarray(active))
  scores = np.exp(x.mean(1) @ column.T + bias) * active
  want = scores / scores.sum(1, keepdims=True)
  np.testing.assert_allclose(gates(mixture, jnp.float32(x)), want, rtol=1e-5, atol=1e-7)
  none = mixture._replace(active=jnp.zeros(4, bool))
  assert not np.asarray(gates(none, jnp.float32(x))).any()
