"""The largest entries of several arrays together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def largest(scores: Mapping[str, Array], share: float) -> dict[str, Array]:
  """Which entries are among the K largest of all arrays together; K = share x their number.

  Args:
    scores: by name, not negative; fewer than 2^31 numbers in all.
    share: in (0, 1]. At least one entry is chosen; of equal ones the first, by name.

  Returns:
    bool, in the shape of each array.

  >>> found = largest({'a': jnp.array([3.0, 1.0]), 'b': jnp.array([[2.0], [0.0]])}, 0.5)
  >>> found['a'].tolist(), found['b'].tolist()
  ([True, False], [[True], [False]])
  """
  names = sorted(scores)
  flat = jnp.concatenate([scores[name].reshape(-1) for name in names])
  places = jax.lax.top_k(flat, max(1, round(share * flat.size)))[1]
  chosen = jnp.zeros(flat.size, bool).at[places].set(True)
  found, start = {}, 0
  for name in names:
    size = scores[name].size
    found[name] = chosen[start : start + size].reshape(scores[name].shape)
    start += size
  return found


def check_share(share: float) -> None:
  """Raises ValueError for a share outside (0, 1]."""
  if not 0 < share <= 1:
    raise ValueError(f'expected a share in (0, 1], got {share}')


def check_search(search: float) -> None:
  """Raises ValueError for a first part of a task outside (0, 1)."""
  if not 0 < search < 1:
    raise ValueError(f'search must be in (0, 1), so that both parts have updates, got {search}')
