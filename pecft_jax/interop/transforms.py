"""Transforms for deltas that come from files."""

import re
from collections.abc import Iterable


def pattern_of(paths: Iterable[str]) -> str:
  """A regular expression of exactly these sites.

  >>> pattern_of(['block_0/attn/q', 'norm'])
  '^(block_0/attn/q|norm)$'
  """
  return f'^({"|".join(map(re.escape, paths))})$'
