"""Digests of trees of arrays, also of arrays that are sharded over processes."""

import hashlib
from typing import Any

import jax
import numpy as np

from pecft_jax.devices.processes import whole
from pecft_jax.paths import named_leaves


def tree_sha256(tree: Any) -> str:
  """Hex digest over path, dtype, shape and bytes of every leaf, in path order.

  Of a leaf that is sharded over processes each gets a copy, one leaf at a time.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(named_leaves(tree), key=lambda item: item[0]):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = whole(jax.random.key_data(leaf) if is_key else leaf)
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    contents: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # Without a copy.
    digest.update(contents)
  return digest.hexdigest()
