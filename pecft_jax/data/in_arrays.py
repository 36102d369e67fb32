"""A source from arrays in memory."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from pecft_jax.data.source import Source, channels_first


def arrays(
  name: str,
  inputs: Any,
  labels: Any,
  class_names: Sequence[str] | None = None,
  *,
  domains: Any = None,
  domain_names: Sequence[str] | None = None,
) -> Source:
  """Makes a source of arrays in memory, and checks that they fit together.

  Args:
    name: of the data set.
    inputs: images uint8 [N, H, W, C], or token ids int32 [N, T].
    labels: integers [N], indices into `class_names`.
    class_names: by default the numbers up to the largest label.
    domains: integers [N], indices into `domain_names`.
    domain_names: by default the numbers up to the largest domain.

  Raises:
    ValueError: for inputs, labels or domains of another dtype or shape.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> images = np.zeros((4, 8, 8, 1), np.uint8)
  >>> data.arrays('mine', images, [0, 1, 1, 0], ['cat', 'dog']).class_names
  ('cat', 'dog')
  """
  inputs = np.asarray(inputs)
  if inputs.dtype not in {np.dtype(np.uint8), np.dtype(np.int32)}:
    raise ValueError(f'{name!r}: expected uint8 images, got {inputs.dtype}; token ids are int32')
  what, axes = ('images', 'NHWC') if inputs.dtype == np.uint8 else ('token ids', 'NT')
  if inputs.ndim != len(axes):
    raise ValueError(f'{name!r}: expected {what} of shape [{", ".join(axes)}], got {inputs.shape}')
  if what == 'images' and channels_first(inputs.shape[1:]):
    raise ValueError(
      f'{name!r}: expected images [N, H, W, C], got {inputs.shape}, which has its channels first; '
      'give inputs.transpose(0, 2, 3, 1)'
    )
  labels, class_names = indices(name, 'label', labels, class_names, len(inputs))
  if domains is not None:
    domains, domain_names = indices(name, 'domain', domains, domain_names, len(inputs))
  elif domain_names:
    raise ValueError(f'{name!r}: expected domains with the domain_names, got none')
  return Source(name, inputs, labels, class_names, domains, tuple(domain_names or ()))


def indices(
  name: str, what: str, values: Any, names: Sequence[str] | None, rows: int
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Labels as int64, and the names that they are indices into.

  Args:
    name: of the data set, for messages.
    what: the values are, in a word.
    values: integers, one a row.
    names: text, or bytes in UTF-8; by default the numbers up to the largest value.
    rows: of the data set.

  Raises:
    ValueError: for values of another type, shape or range, or names that are not text.
  """
  values = np.asarray(values)
  if not np.issubdtype(values.dtype, np.integer):
    raise ValueError(f'{name!r}: expected integer {what}s, got {values.dtype}')
  if values.shape != (rows,):
    raise ValueError(f'{name!r}: expected {rows} {what}s, one per example, got {values.shape}')
  values = values.astype(np.int64)
  if names is None:
    names = [str(i) for i in range(values.max(initial=-1) + 1)]
  if isinstance(names, str | bytes | Set | Mapping):
    raise ValueError(
      f'{name!r}: expected a list of names of the {what}s, in order, got {type(names).__name__}'
    )
  outside = np.unique(values[(values < 0) | (values >= len(names))])
  if outside.size:
    raise ValueError(
      f'{name!r}: expected {what}s in 0..{len(names) - 1}, got {outside[:10].tolist()}'
    )
  return values, tuple(_text(name, what, each) for each in names)


def _text(name: str, what: str, value: Any) -> str:
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise ValueError(f'{name!r}: the {what} name {value!r} is not UTF-8: {error}') from error
  if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
    raise ValueError(f'{name!r}: expected text for the name of a {what}, got {value!r}')
  return str(value)
