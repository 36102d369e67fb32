"""The meaning of the axes of carried arrays, declared beside the fields of their types.

A type of delta or of state names the axes of its fields in `AXES`, and sharding rules refer to
these names, never to a field or a method:

    class LoraDelta(NamedTuple):
      AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}
      a: Array  # [d_in, r]
      b: Array  # [r, d_out]

Names belong to a field's last axes, so that a bank or a stack of it has them,
too; for its first axes if an ellipsis follows. A field may hold a whole tree:
then each leaf has these axes. Fields that are not named have none.

Names that rules of the library know:
  in, out: of the inputs and outputs of the weight that a delta adapts.
  slot: examples of a buffer.
  feature: of a sum or mean per class.
  row, column: of a matrix of second moments.
Others (`class`, `rank`, `task`, ...) say what an axis is; a rule may use them.
"""

from collections.abc import Mapping
from types import EllipsisType
from typing import Any, NamedTuple

import jax

from pecft_jax.paths import join

Axes = tuple[str | EllipsisType | None, ...]


class LayerSplit(NamedTuple):
  """The tensor-parallel sharding of a model's layers.

  The parts of a sublayer go in pairs: one layer is sharded by its outputs, the
  one after it by its inputs, so that activations between them stay where they are.

  Attributes:
    columns: regex of the paths of layers that are sharded by their outputs.
    rows: of those that are sharded by their inputs.
    tables: of embedding tables, which are sharded by their rows; empty for none.
  """

  columns: str
  rows: str
  tables: str = ''


def declared_axes(tree: Any) -> list[tuple[str, Any, Axes]]:
  """Path, leaf and declared axes of every leaf of a pytree, in its order.

  >>> from typing import NamedTuple
  >>> class Sums(NamedTuple):
  ...   AXES = {'sums': ('class', 'feature')}
  ...   counts: Any
  ...   sums: Any
  >>> [(path, axes) for path, _, axes in declared_axes({'memory': Sums(1, 2)})]
  [('memory/counts', ()), ('memory/sums', ('class', 'feature'))]

  Returns:
    `(path, leaf, axes)`; the axes are empty where no type declares any. Of
    types within types the innermost that names the field decides.
  """
  return [(join(path), leaf, axes) for path, leaf, axes in _walk(tree, (), ())]


def _walk(node: Any, path: tuple[Any, ...], axes: Axes) -> Any:
  own: Mapping[str, Axes] = getattr(type(node), 'AXES', {})
  below = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)[0]
  for key, part in below:
    if not key:  # The node is a leaf itself.
      yield path, part, axes
    else:
      yield from _walk(part, (*path, *key), own.get(join(key), axes))
