"""`adapter_config.json` of huggingface/peft, read by allow-list.

Each type of adapter says which entries it reads, which are without effect on the function that was
trained, and which it accepts with certain values (`Keys` in `hf_type.py`). Any other entry is
refused, as it may change the function in a way that this reader does not know.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pecft_jax.files import read_object
from pecft_jax.interop.hf_type import HfType

_ATOM = re.compile(r'(?:\\[.dw_-]|\[[\w.-]+\]|[\w.^$|-])[*+?]?|[()]')
_REPEATS = 2
_LENGTH = 1000
_LARGEST = float(np.finfo(np.float32).max)


def read_config(
  path: Any, types: Mapping[str, HfType], refused: Mapping[str, str]
) -> dict[str, Any]:
  """The configuration of an adapter that can be read here.

  Args:
    path: of the file.
    types: that can be read, by name.
    refused: reasons why others cannot, by name.

  Raises:
    ValueError: if there is none, it is of another type, or one of its keys is
      unknown or has a value that changes the function; names the key.
  """
  config = read_object(path, 'the configuration of an adapter')
  name = config.get('peft_type')
  if isinstance(name, str) and name in refused:
    raise ValueError(f'{path}: adapters of type {name} cannot be read: {refused[name]}')
  if not isinstance(name, str) or name not in types:
    raise ValueError(f'{path}: expected an adapter of type {" or ".join(types)}, got {name!r}')
  keys = types[name].keys
  if unknown := sorted(config.keys() - keys.known()):
    raise ValueError(
      f'{path}: {", ".join(unknown)} may change what the adapter computes, and is not known to '
      'this reader; convert it to a plain adapter where it was trained, or remove the entry if it '
      'has no effect'
    )
  for key, allowed in keys.only.items():
    value = config.get(key, allowed[0])
    if not any(type(value) is type(each) and value == each for each in allowed):
      why = f': {keys.why[key]}' if key in keys.why else ''
      raise ValueError(
        f'{path}: {key}={value!r} is not supported, only {", ".join(map(repr, allowed))}{why}'
      )
  return config


def given(config: Mapping[str, Any], entry: str, default: Any) -> Any:
  """An entry that may be left out, or be null; other empty values are not the default."""
  return default if config.get(entry) is None else config[entry]


def patterns(
  config: Mapping[str, Any], entry: str, read: Callable[[str, Any], Any]
) -> dict[re.Pattern[str], Any]:
  """Values by pattern; a pattern is the end of a name, at a dot, or with `^` all of it."""
  found = given(config, entry, {})
  if not isinstance(found, dict):
    raise ValueError(f'expected an object for {entry}, got {found!r}')
  return {
    re.compile(rf'(.*\.)?({bounded(entry, key)})$'): read(f'{entry}[{key!r}]', value)
    for key, value in found.items()
  }


def one_of(found: Mapping[re.Pattern[str], Any], name: str, default: Any, entry: str) -> Any:
  """The value of the patterns that match a layer.

  Raises:
    ValueError: where two of them have different values: which one was meant depends on their
      order, which peft does not keep.
  """
  values = {value for pattern, value in found.items() if pattern.match(name)} or {default}
  if len(values) > 1:
    raise ValueError(f'{entry} has different values for {name}: {sorted(values)}')
  return values.pop()


def check_rank(found: Mapping[re.Pattern[str], int], name: str, default: int, rank: int) -> None:
  """Raises ValueError where the configuration contradicts the rank of a layer's tensors."""
  said = [value for pattern, value in found.items() if pattern.match(name)] or [default]
  if rank not in said:
    raise ValueError(f'the tensors of {name} have rank {rank}, its configuration says {said[0]}')


def bounded(entry: str, pattern: str) -> str:
  """A regular expression that takes little time on any text."""
  end = repeats = 0
  while len(pattern) <= _LENGTH and (atom := _ATOM.match(pattern, end)):
    end, repeats = atom.end(), repeats + (atom[0][-1] in '*+?' and len(atom[0]) > 1)
  if end < len(pattern) or repeats > _REPEATS:
    raise ValueError(
      f'{entry} {pattern[:80]!r}: expected names of layers, or a regular expression of names, '
      f'classes, alternatives and at most {_REPEATS} single characters that repeat'
    )
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f'{entry} {pattern!r} is no regular expression: {error}') from error
  return pattern


def whole(entry: str, value: Any) -> int:
  """Checks a whole number of at least 1."""
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(f'expected a whole number of at least 1 for {entry}, got {value!r}')
  return value


def finite(entry: str, value: Any) -> float:
  """Checks a number that float32 holds."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not number or not abs(value) <= _LARGEST:
    raise ValueError(f'expected a finite number for {entry}, got {value!r}')
  return value


def share(entry: str, value: Any) -> float:
  """Checks a number from 0 to below 1."""
  if not 0 <= finite(entry, value) < 1:
    raise ValueError(f'expected a number in [0, 1) for {entry}, got {value!r}')
  return value


def switch(entry: str, value: Any) -> bool:
  """Checks true or false; null is false."""
  if not isinstance(value, bool | None):
    raise ValueError(f'expected true or false for {entry}, got {value!r}')
  return bool(value)


def tidy(number: float) -> float | int:
  """As an integer where the value is whole, as the format expects."""
  return round(number) if abs(number - round(number)) < 1e-6 * abs(number) else number
