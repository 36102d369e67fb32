"""Sums over examples, in float32 at the highest matmul precision."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


class ClassSums(NamedTuple):
  """Sums over the examples of each class, float32."""

  AXES = {'counts': ('class',), 'sums': ('class', 'feature')}

  counts: Array  # [C]
  sums: Array  # [C, D]


def class_sums(features: Array, labels: Array, valid: Array, classes: int) -> tuple[Array, Array]:
  """Sum and number of the features of each class in a batch.

  Args:
    features: [B, D]
    labels: [B] int32
    valid: [B] bool
    classes: C

  Returns:
    sums [C, D] and counts [C], float32.

  Raises:
    AssertionError: for other ranks, or different numbers of rows.
  """
  chex.assert_rank([features, labels, valid], [2, 1, 1])
  chex.assert_equal_shape_prefix([features, labels, valid], 1)
  members = one_hot(labels, valid, classes)
  sums = jnp.matmul(members.T, features.astype(jnp.float32), precision='highest')
  return sums, members.sum(0)


def one_hot(labels: Array, valid: Array, classes: int) -> Array:
  """[B, C] float32; zero rows for invalid examples."""
  return jax.nn.one_hot(labels, classes) * valid[:, None]
