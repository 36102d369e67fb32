"""Novelty of data: autoencoders, and the mean and spread of their errors.

As the representation descriptors of SEMA (Wang et al., 2025, arXiv:2403.18886), and the selector of
MoE-Adapters (Yu et al., 2024, arXiv:2403.11549).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from pecft_jax.continual.core import mean_of_valid
from pecft_jax.typing import Array, Key


class Descriptor(NamedTuple):
  """An autoencoder of two linear layers."""

  down: Array  # [D, H], uniform in +-sqrt(1 / D) at init.
  down_bias: Array  # [H], zeros at init.
  up: Array  # [H, D], uniform in +-sqrt(1 / H) at init.
  up_bias: Array  # [D], zeros at init.


class Spread(NamedTuple):
  """Mean and centred squares of the errors of E descriptors."""

  count: Array  # [E]
  mean: Array  # [E]
  squares: Array  # [E], the sum of (error - mean)^2.


def fresh_descriptor(key: Key, width: int, hidden: int) -> Descriptor:
  """A descriptor of vectors [D] with H = `hidden` numbers in between. Consumes the key."""
  k_down, k_up = jax.random.split(key)
  spread = lambda key, rows, columns: jax.random.uniform(
    key, (rows, columns), minval=-(rows**-0.5), maxval=rows**-0.5
  )
  return Descriptor(
    spread(k_down, width, hidden), jnp.zeros(hidden), spread(k_up, hidden, width), jnp.zeros(width)
  )


def reconstruction_errors(coder: Descriptor, tokens: Array) -> Array:
  """The mean squared error [B] of a descriptor on mean tokens [B, D]."""
  code = jnp.matmul(tokens, coder.down, precision='highest') + coder.down_bias
  again = jnp.matmul(code, coder.up, precision='highest') + coder.up_bias
  return jnp.square(again - tokens).mean(-1)


def bounded_errors(coder: Descriptor, features: Array) -> Array:
  """The mean squared error [B] on the sigmoid of features [B, D], with a ReLU and a sigmoid.

  With s = sigmoid(h) it is that of sigmoid(relu(s W_down + b_down) W_up + b_up) from s.
  """
  inputs = jax.nn.sigmoid(features.astype(jnp.float32))
  code = jax.nn.relu(jnp.matmul(inputs, coder.down, precision='highest') + coder.down_bias)
  again = jax.nn.sigmoid(jnp.matmul(code, coder.up, precision='highest') + coder.up_bias)
  return jnp.square(again - inputs).mean(-1)


def z_scores(errors: Spread, new: Array) -> Array:
  """|new - mean| / deviation of [E, B]; 0 for descriptors with fewer than three errors."""
  deviation = jnp.sqrt(errors.squares / jnp.maximum(errors.count - 1, 1))
  away = jnp.abs(new - errors.mean[:, None]) / jnp.maximum(deviation, 1e-12)[:, None]
  return jnp.where(errors.count[:, None] > 2, away, 0)


def with_errors(spread: Spread, errors: Array, valid: Array, at: Array) -> Spread:
  """Adds a batch of errors [B] to the descriptors `at` [E] bool (Chan et al., 1983)."""
  chex.assert_equal_shape([errors, valid])
  chex.assert_equal_shape([at, spread.count])
  many = valid.sum(dtype=jnp.float32)
  mean = mean_of_valid(errors, valid)
  squares = jnp.where(valid, jnp.square(errors - mean), 0).sum()
  count = spread.count + many
  share, away = many / jnp.maximum(count, 1), mean - spread.mean
  new = Spread(
    count, spread.mean + share * away, spread.squares + squares + away**2 * share * spread.count
  )
  return jax.tree.map(lambda a, b: jnp.where(at, a, b), new, spread)
