"""Selection of prompts by their keys: by an example, by a whole batch, away from past tasks."""

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def nearest(similarity: Array, top_k: int) -> Array:
  """The prompts [B, N] that are most similar to each example.

  Args:
    similarity: [B, M], of each example and each prompt.
    top_k: N, prompts that an example selects.
  """
  return jax.lax.top_k(similarity, top_k)[1]


def vote(similarity: Array, top_k: int) -> Array:
  """The prompts [N] that most examples of a batch selected; arguments as of `nearest`."""
  chosen = nearest(similarity, top_k)
  votes = jnp.zeros(similarity.shape[1]).at[chosen.reshape(-1)].add(1.0)
  return jax.lax.top_k(votes, top_k)[1]


def diversified(similarity: Array, frequency: Array) -> Array:
  """Scores [B, M] that are larger for prompts which past tasks selected less: L2P's eq. 4.

  Their order is that of (1 - similarity) x frequency, the smallest first. Of equal products, such
  as those of prompts that were never selected, the more similar comes first.

  Args:
    similarity: [B, M], cosines.
    frequency: [M], selections of each prompt in past tasks, not negative; its scale is ignored.

  >>> similarity, frequency = jnp.array([[0.9, 0.6, 0.1]]), jnp.array([6.0, 1.0, 1.0])
  >>> nearest(similarity, 2).tolist(), nearest(diversified(similarity, frequency), 2).tolist()
  ([[0, 1]], [[1, 0]])
  >>> nearest(diversified(similarity, jnp.zeros(3)), 2).tolist()
  [[0, 1]]
  """
  distance = 1 - similarity
  share = frequency / jnp.maximum(frequency.sum(), 1)
  order = jnp.lexsort((distance, distance * share))  # The last key is the first criterion.
  return -jnp.argsort(order).astype(jnp.float32)  # Minus the rank.
