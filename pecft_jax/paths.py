"""Names of leaves: every rule of the library addresses leaves by 'a/b/c' paths."""

import re
from typing import Any

import jax

from pecft_jax.text import shortened, unknown

__all__ = (
  'join',
  'key_name',
  'map_named',
  'matches',
  'matching',
  'named_leaves',
  'shortened',
  'tree_bytes',
  'tree_size',
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
