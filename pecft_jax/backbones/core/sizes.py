"""Checks of a model's arguments, before anything is traced."""

import math
from typing import Any

import numpy as np

_LAYERS = ('depth', 'num_hidden_layers')
_MOST_LAYERS = 1000  # Several times the layers of the deepest models.
_MOST = 2**31 - 1
_LARGEST = float(np.finfo(np.float32).max)


def check_sizes(model: str, **sizes: Any) -> None:
  """Checks that sizes are whole numbers from 1 to a generous maximum.

  Args:
    model: its name, for messages.
    **sizes: by name; `depth` and `num_hidden_layers` count layers.

  Raises:
    ValueError: names the size.

  >>> check_sizes('mine', width=0)
  Traceback (most recent call last):
  ValueError: mine: expected a whole number in 1..2147483647 for width, got 0
  """
  for name, value in sizes.items():
    most = _MOST_LAYERS if name in _LAYERS else _MOST
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= most:
      raise ValueError(f'{model}: expected a whole number in 1..{most} for {name}, got {value!r}')


def check_positive(model: str, **values: Any) -> None:
  """Checks that values are positive and finite numbers.

  Args:
    model: its name, for messages.
    **values: by name.

  Raises:
    ValueError: names the value.
  """
  for name, value in values.items():
    if not _number(value) or not value > 0:
      raise ValueError(f'{model}: expected a positive number for {name}, got {value!r}')


def channel_values(
  model: str, name: str, values: Any, channels: int, *, positive: bool = False
) -> tuple[float, ...]:
  """One finite number for each channel.

  Args:
    model: its name, for messages.
    name: of the values.
    values: a sequence of numbers.
    channels: their count.
    positive: whether each must be above zero.

  Raises:
    ValueError: for anything else; names the values.

  >>> channel_values('mine', 'std', [0.5], 1, positive=True)
  (0.5,)
  """
  if isinstance(values, np.ndarray):
    values = values.tolist()
  listed: Any = values if isinstance(values, list | tuple) else ()
  if len(listed) != channels:
    raise ValueError(f'{model}: expected {channels} values for {name}, got {values!r}')
  for value in listed:
    if not _number(value) or (positive and not value > 0):
      kind = 'positive numbers' if positive else 'finite numbers'
      raise ValueError(f'{model}: expected {kind} for {name}, got {values!r}')
  return tuple(listed)


def _number(value: Any) -> bool:
  """Whether a value is a number that float32 can hold."""
  if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
    return False
  return math.isfinite(value) and abs(float(value)) <= _LARGEST
