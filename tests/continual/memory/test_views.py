import collections

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax import data
from pecft_jax.continual import shifts_and_flips
from pecft_jax.continual.memory.views import viewed
from pecft_jax.typing import Given

IMAGE = np.arange(1, 1 + 4 * 5 * 2, dtype=np.uint8).reshape(1, 4, 5, 2)


def test_views_are_those_of_the_host_and_as_frequent():
  """Every shift with and without a mirror, by the numpy views of `pecft_jax.data`."""
  host = data.compose(data.random_crop(1), data.horizontal_flip())
  grid = [(a, b, c) for a in (0.1, 0.5, 0.9) for b in (0.1, 0.5, 0.9) for c in (0.1, 0.9)]
  wanted = host.apply(np.repeat(IMAGE, len(grid), 0), np.array(grid, np.float32))
  wanted = {image.tobytes() for image in wanted}
  assert len(wanted) == 18
  many = np.repeat(IMAGE, 3000, 0)
  found = np.asarray(jax.jit(shifts_and_flips(1))(jnp.asarray(many), jax.random.key(0)))
  counts = np.array(list(collections.Counter(image.tobytes() for image in found).values()))
  np.testing.assert_allclose(counts / 3000, 1 / 18, atol=0.02)
  assert {image.tobytes() for image in found} == wanted


def test_a_view_has_no_cached_feature():
  x = Given(jnp.asarray(IMAGE), jnp.ones((1, 3)), jnp.zeros(1, jnp.int32))
  found = viewed(shifts_and_flips(1, flip=False), x, jax.random.key(0))
  assert found.query is None and found.task is x.task and found.x.shape == IMAGE.shape
  assert viewed(None, x, jax.random.key(0)) is x
