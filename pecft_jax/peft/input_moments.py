"""Mean and covariance of what arrives at linear sites, over a pass of a calibration."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from pecft_jax.typing import Array


class InputMoments(NamedTuple):
  """Of the rows x [d_in] of all tokens of all valid examples, float32.

  Products are of centred rows, which a large mean does not round away.
  """

  count: Array  # [], rows.
  mean: Array  # [d_in]
  scatter: Array  # [d_in, d_in], sum of (x - mean)(x - mean)^T


def no_inputs(d_in: int) -> InputMoments:
  """Moments of no row yet."""
  return InputMoments(jnp.zeros(()), jnp.zeros(d_in), jnp.zeros((d_in, d_in)))


def with_inputs(moments: InputMoments, x: Array, valid: Array) -> InputMoments:
  """The moments with the rows of a batch more (Chan, Golub and LeVeque, 1979).

  Args:
    moments: so far.
    x: [B, ..., d_in]
    valid: [B] bool; rows of other examples are ignored.

  >>> both = with_inputs(no_inputs(1), jnp.array([[1.0], [3.0]]), jnp.array([True, True]))
  >>> both.mean.tolist(), both.scatter.tolist()
  ([2.0], [[2.0]])
  """
  x = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
  used = jnp.broadcast_to(valid[:, None, None], (*x.shape[:2], 1)).astype(jnp.float32)
  count = used.sum()
  mean = (used * x).sum((0, 1)) / jnp.maximum(count, 1)
  rows = (used * (x - mean)).reshape(-1, x.shape[-1])
  total = moments.count + count
  share = count / jnp.maximum(total, 1)
  apart = mean - moments.mean
  scatter = moments.scatter + jnp.matmul(rows.T, rows, precision='highest')
  return InputMoments(
    total,
    moments.mean + share * apart,
    scatter + moments.count * share * jnp.outer(apart, apart),
  )


def second_moment(moments: InputMoments) -> Array:
  """The mean of x x^T [d_in, d_in], not centred."""
  return moments.scatter / jnp.maximum(moments.count, 1) + jnp.outer(moments.mean, moments.mean)


def tap_at(path: str, taps: Mapping[str, Any]) -> Any:
  """What was watched at a linear site."""
  return taps[f'linear:{path}']
