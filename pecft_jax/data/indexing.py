"""Names of classes and domains as indices."""

from collections.abc import Sequence

import numpy as np

from pecft_jax.text import unknown


def indexed(
  name: str, what: str, values: Sequence[str], names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Names as indices into a list of them.

  Args:
    name: of the data set, for messages.
    what: a word for the values, for messages.
    values: one per row.
    names: all names, in order; by default the distinct values, sorted.

  Returns:
    np.int64 [N], and the names.

  Raises:
    ValueError: for a value that is none of the names, or names that come twice.

  >>> indexed('pets', 'class', ['dog', 'cat', 'dog'], None)
  (array([1, 0, 1]), ('cat', 'dog'))
  """
  names = tuple(sorted(set(values)) if names is None else names)
  place = {each: i for i, each in enumerate(names)}
  if len(place) < len(names):
    raise ValueError(f'{name!r}: expected each {what} name once, got {list(names)[:20]}')
  for value in values:
    if value not in place:
      raise ValueError(f'{name!r}: {unknown(what, value, names)}')
  return np.array([place[value] for value in values], np.int64), names
