"""Growth of the carried state with the number of tasks."""

from collections.abc import Callable, Iterable

import jax

from pecft_jax.paths import tree_bytes
from pecft_jax.typing import ContinualMethod, Params

# Bytes of metadata that orbax writes for a leaf: shape, dtype, sharding and the like.
LEAF_METADATA = 1024


def carried_bytes(method: ContinualMethod, frozen: Params) -> int:
  """Bytes of parameters and memory at the method's capacity, exactly.

  Args:
    method: any.
    frozen: the backbone's weights, or their shapes.

  >>> from pecft_jax.continual import simplecil
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = simplecil(model.backbone, Capacity(tasks=5, classes=10))
  >>> carried_bytes(method, model.params) > 4 * 10 * 96
  True
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  return tree_bytes(jax.eval_shape(method.init, key, frozen))


def growth(
  build: Callable[[int], ContinualMethod], frozen: Params, tasks: Iterable[int] = (1, 10, 100)
) -> dict[int, int]:
  """Bytes that are carried, by the number of tasks in the capacity.

  Args:
    build: makes the method for a number of tasks, with their classes.
    frozen: shapes of the backbone's weights.
    tasks: numbers of tasks.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import simplecil
  >>> from pecft_jax.typing import Capacity
  >>> model = architecture('vit_glyphs16')
  >>> frozen = jax.eval_shape(model.init, jax.random.key(0))
  >>> sizes = growth(lambda t: simplecil(model, Capacity(t, 2 * t)), frozen, tasks=(1, 10))
  >>> sizes[1] < sizes[10]
  True
  """
  return {count: carried_bytes(build(count), frozen) for count in tasks}


def checkpoint_bytes(state: object) -> int:
  """An upper bound of the bytes of a checkpoint of this state on disk.

  Orbax compresses arrays, by a few per cent where they hold trained numbers, to next to nothing
  where they are still zero.

  Args:
    state: arrays, or their shapes.

  >>> import numpy as np
  >>> checkpoint_bytes({'a': np.zeros(1000, np.float32)}) >= 4000
  True
  """
  return tree_bytes(state) + LEAF_METADATA * len(jax.tree.leaves(state))
