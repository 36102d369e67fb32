import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.memory.alignment import task_norm


def test_logits_are_divided_by_the_mean_of_each_tasks_norm():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 7))
  home = np.array([0, 0, 1, 1, 1, -1, -1], np.int32)
  want = (np.linalg.norm(logits[:, :2], axis=1) + np.linalg.norm(logits[:, 2:5], axis=1)) / 2
  found = task_norm(jnp.float32(logits), jnp.asarray(home), jnp.int32(1), 3)
  np.testing.assert_allclose(found[:, 0], want, rtol=1e-5)
