"""Whether arrays hold numbers, wherever they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.paths import named_leaves

_CHUNK = 1 << 24


def not_finite_in(tree: Any) -> list[str]:
  """The paths of the leaves of a tree that hold NaN or infinities; leaves of integers have none.

  Args:
    tree: of arrays of numpy or jax; other leaves are ignored.

  >>> not_finite_in({'a': np.ones(2), 'b': jnp.array([1.0, jnp.nan])})
  ['b']
  """
  leaves = {
    name: leaf
    for name, leaf in named_leaves(tree)
    if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)
  }
  # Host memory needs no program; all other leaves share one, so that it is compiled once.
  there = {name: leaf for name, leaf in leaves.items() if not _on_host(leaf)}
  found = {name: _all_finite(np.asarray(leaf)) for name, leaf in leaves.items() if _on_host(leaf)}
  if there:
    found |= jax.device_get(_finite(there))
  return [name for name in leaves if not found[name]]


def _on_host(leaf: Any) -> bool:
  if isinstance(leaf, np.ndarray):
    return True
  cpu = all(device.platform == 'cpu' for device in leaf.devices())
  return cpu and leaf.is_fully_addressable and len(leaf.devices()) == 1


def _all_finite(array: np.ndarray) -> bool:
  """In parts, so that the masks of large arrays take little memory."""
  flat = array.reshape(-1)
  return all(bool(np.isfinite(flat[at : at + _CHUNK]).all()) for at in range(0, flat.size, _CHUNK))


_finite = jax.jit(lambda leaves: {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()})
