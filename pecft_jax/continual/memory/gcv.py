"""The ridge of least generalised cross-validation error (Golub, Heath and Wahba, 1979,
doi:10.1080/00401706.1979.10489751)."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.ridge import Examples
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.typing import Array


def gcv_ridge(rows: Examples, ridges: Sequence[float], *, least: Array | float) -> Array:
  """The ridge whose regression on some examples has the least generalised cross-validation error.

  With K = H H^T = U diag(s) U^T over n examples, and d = s / (s + ridge),

    error = (|(1 - d) U^T Y|^2 / n) / (1 - sum(d) / n)^2,

  which no example need be held out for. Of ridges with equal errors it is the first.

  Args:
    rows: the examples, as they are, not centred.
    ridges: those that are tried, in ascending order.
    least: smaller ones are not considered.

  Returns:
    [] float32; the last one if none is considered, or none has a finite error.

  Raises:
    AssertionError: for other shapes.
  """
  h, y, valid = rows
  chex.assert_rank([h, y, valid], [2, 2, 1])
  chex.assert_equal_shape_prefix([h, y, valid], 1)
  # Rows that are not valid are zeros: they add nothing to any of the sums.
  h, y = h * valid[:, None], y * valid[:, None]
  count = valid.sum(dtype=jnp.float32)
  values, vectors = jnp.linalg.eigh(dot(h, h.T))
  along = jnp.square(dot(vectors.T, y)).sum(1)
  values = jnp.maximum(values, 0)  # Rounding makes some negative.

  def error(ridge: Array) -> Array:
    left = ridge / (values + ridge)  # 1 - d
    freedom = jnp.where(values > 0, 1 - left, 0).sum() / count
    return (jnp.square(left) * along).sum() / count / jnp.square(1 - freedom)

  tried = jnp.asarray(ridges, jnp.float32)
  errors = jax.vmap(error)(tried)
  errors = jnp.where(jnp.isfinite(errors) & (tried >= least), errors, jnp.inf)
  return tried[jnp.where(jnp.isfinite(errors).any(), jnp.argmin(errors), len(tried) - 1)]
