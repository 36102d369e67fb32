"""The order of the classes in a sequence."""

from collections.abc import Sequence

import numpy as np


def class_order(spec: str | Sequence[int | str], num_classes: int) -> tuple[int, ...]:
  """Reads a class order: position in the sequence -> label in the data.

  Args:
    spec: `'natural'` for 0, 1, 2, ...; `'seed:1993'` for the permutation that
      numpy's legacy generator draws after that seed, the convention of PILOT
      and PyCIL; or the labels themselves, as a sequence or as in `'3,1,0,2'`.
      Labels may be left out, not repeated.
    num_classes: C; labels are 0..C-1.

  Raises:
    ValueError: for labels that are out of range, repeated or unreadable.

  >>> class_order('natural', 3)
  (0, 1, 2)
  >>> class_order('2,0,1', 3)
  (2, 0, 1)
  """
  choices = "choices: 'natural', 'seed:NUMBER', labels as in '3,1,0,2'"
  if isinstance(spec, str) and spec == 'natural':
    return tuple(range(num_classes))
  try:
    if isinstance(spec, str) and spec.startswith('seed:'):
      # RandomState and not default_rng: published results depend on its stream.
      drawn = np.random.RandomState(int(spec.removeprefix('seed:'))).permutation(num_classes)
      return tuple(drawn.tolist())
    labels = spec.split(',') if isinstance(spec, str) else spec
    order = tuple(_label(value) for value in labels)
  except (ValueError, TypeError) as error:
    raise ValueError(f'cannot read a class order from {spec!r} ({error}); {choices}') from error
  outside = sorted({label for label in order if not 0 <= label < num_classes})
  repeated = sorted({label for label in order if order.count(label) > 1})
  if outside:
    raise ValueError(f'class order: expected labels in 0..{num_classes - 1}, got {outside}')
  if repeated:
    raise ValueError(f'class order: expected each label once, got {repeated} more than once')
  if not order:
    raise ValueError(f'class order: expected at least one label, got {spec!r}; {choices}')
  return order


def _label(value: str | int) -> int:
  if isinstance(value, str):
    return int(value)
  if not isinstance(value, int | np.integer) or isinstance(value, bool):
    raise TypeError(f'{value!r} is no label')
  return int(value)
