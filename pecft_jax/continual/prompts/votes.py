"""Selection of prompts by a whole batch."""

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def vote(similarity: Array, top_k: int) -> Array:
  """The prompts [top_k] that most examples of a batch selected.

  Args:
    similarity: [B, M], of each example and each prompt.
    top_k: prompts that an example selects.
  """
  _, chosen = jax.lax.top_k(similarity, top_k)
  votes = jnp.zeros(similarity.shape[1]).at[chosen.reshape(-1)].add(1.0)
  return jax.lax.top_k(votes, top_k)[1]
