"""A source from arrays in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pecft_jax.data.source import Source


def arrays(
  name: str,
  inputs: Any,
  labels: Any,
  class_names: Sequence[str] | None = None,
  *,
  domains: Any = None,
  domain_names: Sequence[str] | None = None,
) -> Source:
  """Makes a source of arrays, after checking that they fit together.

  Args:
    name: of the data set.
    inputs: images uint8 [N, H, W, C], or token ids int32 [N, T].
    labels: integers [N], indices into `class_names`.
    class_names: by default the numbers up to the largest label.
    domains: integers [N], indices into `domain_names`.
    domain_names: by default the numbers up to the largest domain.
  """
  inputs = np.asarray(inputs)
  if inputs.dtype not in {np.dtype(np.uint8), np.dtype(np.int32)}:
    raise ValueError(f'{name!r}: expected uint8 images, got {inputs.dtype}; token ids are int32')
  what, axes = ('images', 'NHWC') if inputs.dtype == np.uint8 else ('token ids', 'NT')
  if inputs.ndim != len(axes):
    raise ValueError(f'{name!r}: expected {what} of shape [{", ".join(axes)}], got {inputs.shape}')
  labels, class_names = _indices(name, 'label', labels, class_names, len(inputs))
  if domains is not None:
    domains, domain_names = _indices(name, 'domain', domains, domain_names, len(inputs))
  elif domain_names:
    raise ValueError(f'{name!r}: expected domains with the domain_names, got none')
  return Source(name, inputs, labels, class_names, domains, tuple(domain_names or ()))


def _indices(
  name: str, what: str, values: Any, names: Sequence[str] | None, rows: int
) -> tuple[np.ndarray, tuple[str, ...]]:
  values = np.asarray(values)
  if not np.issubdtype(values.dtype, np.integer):
    raise ValueError(f'{name!r}: expected integer {what}s, got {values.dtype}')
  if values.shape != (rows,):
    raise ValueError(f'{name!r}: expected {rows} {what}s, one per example, got {values.shape}')
  values = values.astype(np.int64)
  if names is None:
    names = [str(i) for i in range(values.max(initial=-1) + 1)]
  outside = np.unique(values[(values < 0) | (values >= len(names))])
  if outside.size:
    raise ValueError(f'{name!r}: expected {what}s in 0..{len(names) - 1}, got {outside.tolist()}')
  return values, tuple(str(n) for n in names)
