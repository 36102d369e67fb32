"""Values by pattern of the path of a site, as the ranks of LoRA."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from pecft_jax.paths import matches, shortened

T = TypeVar('T')


def first_match(values: Mapping[str, T], path: str, default: T) -> T:
  """The value of the first pattern that is found in a path, or the default.

  >>> first_match({'attn/q$': 4, 'attn': 2}, 'block_0/attn/q', 8)
  4
  """
  return next((value for pattern, value in values.items() if matches(pattern, path)), default)


def check_each_matches(what: str, patterns: Iterable[str], paths: Iterable[str]) -> None:
  """Raises ValueError for a pattern that decides nothing: it matches no path.

  Args:
    what: the argument that the patterns are of, for the message.
    patterns: regular expressions.
    paths: of sites.
  """
  paths = sorted(paths)
  for pattern in patterns:
    if not any(matches(pattern, path) for path in paths):
      raise ValueError(f'{what}: no site matches {pattern!r}; sites: {shortened(paths)}')
