"""Names of leaves: every rule of the library addresses leaves by 'a/b/c' paths."""

import re
from typing import Any

import jax

from pecft_jax.text import count, shortened, unknown

__all__ = (
  'join',
  'key_name',
  'map_named',
  'matches',
  'matching',
  'named_leaves',
  'record_words',
  'shortened',
  'tree_bytes',
  'tree_size',
  'tree_words',
  'unknown',
)


def key_name(key: Any) -> str:
  """The plain name of one entry of a jax key path."""
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def join(path: tuple[Any, ...]) -> str:
  """`'a/b/c'` of a jax key path."""
  return '/'.join(key_name(key) for key in path)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
  """The leaves of a pytree with their paths, in path order of the tree."""
  return [(join(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_named(fn: Any, tree: Any, *rest: Any) -> Any:
  """`jax.tree.map` whose function also gets the path, first."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaf: fn(join(path), *leaf), tree, *rest)


def matches(pattern: str, name: str) -> bool:
  """Whether a regular expression is found in a name.

  Raises:
    ValueError: if the pattern is no regular expression.

  >>> matches('attn/(q|v)$', 'block_0/attn/q')
  True
  """
  try:
    return re.search(pattern, name) is not None
  except (re.error, RecursionError, OverflowError) as error:
    raise ValueError(f'pattern {pattern!r} is no regular expression: {error}') from error


def matching(pattern: str, tree: Any) -> list[str]:
  """Paths of the leaves that a regular expression is found in.

  Raises:
    ValueError: if there are none; the message lists the paths there are. Or as `matches`.
  """
  names = [name for name, _ in named_leaves(tree)]
  found = [name for name in names if matches(pattern, name)]
  if not found:
    raise ValueError(f'no leaf matches {pattern!r}; leaves: {shortened(names)}')
  return found


def tree_bytes(tree: Any) -> int:
  """Bytes of all leaves; also of abstract ones."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def tree_size(tree: Any) -> int:
  """Number of scalars in all leaves."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def tree_words(tree: Any) -> str:
  """A pytree in a few words, for the `repr` of a record: one array by its shape.

  No value is read, so leaves may be abstract, traced or deleted.

  >>> import numpy as np
  >>> tree_words(np.zeros((3, 4), np.float32)), tree_words({'a': np.zeros(3), 'b': np.zeros(2000)})
  ('float32[3, 4]', '2 k numbers in 2 leaves')
  """
  leaves = jax.tree.leaves(tree)
  numbers = sum(getattr(leaf, 'size', 1) for leaf in leaves)
  if len(leaves) == 1 and hasattr(leaves[0], 'shape'):
    return f'{leaves[0].dtype}{list(leaves[0].shape)}'
  return f'{count(numbers)} numbers in {len(leaves)} leaves' if leaves else 'empty'


def record_words(record: Any) -> str:
  """The `repr` of a NamedTuple of arrays and trees: each field in a few words.

  >>> from pecft_jax.typing import Given
  >>> import numpy as np
  >>> record_words(Given(np.zeros((2, 3), np.int32)))
  'Given(x=int32[2, 3])'
  """
  given = {name: each for name, each in record._asdict().items() if each is not None}
  fields = (
    f'{name}={each if isinstance(each, int | float | str) else tree_words(each)}'
    for name, each in given.items()
  )
  return f'{type(record).__name__}({", ".join(fields)})'
