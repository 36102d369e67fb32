"""The `config.json` that other libraries put beside a file of weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

from pecft_jax.files import read_object

CONFIG = 'config.json'


def configuration_beside(path: pathlib.Path) -> dict[str, Any] | None:
  """The entries of the `config.json` in the folder of a file of weights.

  Args:
    path: of the weights.

  Returns:
    None where there is none, or where it is the config.json of a run, in whose work directory the
    weights lie.

  Raises:
    ValueError: for a file that is no JSON object.
  """
  path = path.parent / CONFIG
  if not path.exists():
    return None
  entries = read_object(path, 'the configuration of a model')
  return None if {'identity', 'method', 'training'} <= entries.keys() else entries


def check_known(path: pathlib.Path, entries: Mapping[str, Any], known: set[str]) -> None:
  """Raises ValueError for entries that a reader does not know; names them."""
  if unknown := sorted(entries.keys() - known):
    raise ValueError(
      f'{path}: {", ".join(unknown)} may change what the model computes, and is not known to this '
      'reader; remove the entry if it has no effect'
    )


def check_values(
  path: pathlib.Path, entries: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]
) -> None:
  """Raises ValueError for an entry with a value that is not allowed; the first is the default."""
  for key, values in allowed.items():
    value = entries.get(key, values[0])
    if not any(type(value) is type(each) and value == each for each in values):
      expected = ', '.join(map(repr, values))
      raise ValueError(f'{path}: {key}={value!r} is not supported, only {expected}')
