"""Single values as JSON, for `pecft_jax.settings`: numbers, strings, dtypes, arrays.

A value and its text count as the same: a path and its string, a dtype and its
name, infinity and 'inf'. A scalar of numpy or jax counts as the Python number.
"""

import enum
import hashlib
import math
import pathlib
import re
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from pecft_jax.sources import is_library, qualified_name

_LONG = 64  # Bytes of text that is shown as it is.


def simple(value: Any) -> Any:
  """JSON of a single value; None for anything else, and where nothing says which value it is.

  >>> simple(0.5), simple(np.float32(0.5)), simple(float('inf')), simple(np.dtype('int8'))
  (0.5, 0.5, 'inf', 'int8')
  >>> simple(np.arange(3, dtype=np.int8))['array']
  'int8[3]'
  """
  if isinstance(value, enum.Enum):  # An int or a str, too.
    return enum_name(value) if is_library(type(value)) else None
  if isinstance(value, int | float | complex):
    return _number(value)
  if isinstance(value, str):
    return str.__str__(value)  # Of a subclass, too.
  if isinstance(value, bytes):
    return {'bytes': repr(bytes(value)) if len(value) <= _LONG else _sha256(value)}
  if isinstance(value, pathlib.PurePath):
    return str(value)
  if isinstance(value, np.dtype):
    return _dtype(value)
  if isinstance(value, re.Pattern):
    return {'pattern': simple(value.pattern), 'flags': value.flags}
  if isinstance(value, jax.ShapeDtypeStruct):
    return {'shape': list(value.shape), 'dtype': str(value.dtype)}
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    return _array(value)
  if isinstance(value, type):
    return _scalar_type(value)
  return None


def _number(value: complex) -> Any:
  if isinstance(value, bool):
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else repr(float(value))
  return {'complex': repr(complex(value))}


def enum_name(value: enum.Enum) -> str:
  """`module.Class.NAME`; flags without a name have their value there."""
  return f'{qualified_name(type(value))}.{value.name or value.value}'


def _scalar_type(value: type) -> str | None:
  """The name of the dtype of a numpy or jax.numpy scalar type."""
  if issubclass(value, np.generic):
    return np.dtype(value).name
  dtype = getattr(value, 'dtype', None)
  return dtype.name if isinstance(dtype, np.dtype) and is_library(value) else None


def _dtype(dtype: np.dtype) -> str:
  """The dtype's name; its `repr` for structured dtypes and those of another byte order."""
  return dtype.name if dtype.isnative and dtype.fields is None else repr(dtype)


def _array(value: Any) -> Any:
  """By dtype, shape and digest. None of masked arrays, of objects, and of what cannot be read."""
  if isinstance(value, Tracer | np.ma.MaskedArray) or not _readable(value):
    return None
  dtype = str(value.dtype)
  if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
    value = jax.random.key_data(value)
  array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
  if array.dtype.hasobject:
    return None
  if not array.ndim and array.dtype.kind in 'biuf':
    return simple(array.item())
  shape = ', '.join(map(str, array.shape))
  found = {'array': f'{dtype}[{shape}]', 'sha256': _sha256(_bytes(array))}
  other = isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap)
  return {**found, 'class': type(value).__name__} if other else found


def _readable(value: Any) -> bool:
  """Whether a jax array is not deleted, and this process can read all of it."""
  if not isinstance(value, jax.Array):
    return True
  whole = value.is_fully_addressable or value.is_fully_replicated
  return whole and not value.is_deleted()


def _bytes(array: np.ndarray) -> Any:
  """The contents without a copy, also of dtypes that have no buffer protocol (bfloat16, float8)."""
  return array.reshape(-1).view(np.uint8).data if array.nbytes else b''


def _sha256(contents: Any) -> str:
  return hashlib.sha256(contents).hexdigest()[:16]
