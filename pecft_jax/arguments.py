"""Checks of arguments against the annotations of factories: types, and finite numbers.

A rank of 2.0, a rate that is NaN, or a factory where its result was meant (`lora` for `lora()`)
would otherwise fail far from the mistake, or not at all.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')
_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_WHOLE = 1 << 63  # Above all integers that arrays can have, as entries or as sizes.
_LARGEST = 3.4028234663852886e38  # Of float32, in which everything is computed.
_UNIONS = (typing.Union, types.UnionType)


def check_arguments(
  factory: Callable[..., Any], arguments: Mapping[str, Any], called: str | None = None
) -> None:
  """Checks arguments against the annotations of a factory.

  Integers, floats, booleans, strings, literals, records, callables, and unions, sequences and
  mappings of these are checked; other annotations are not. Floats must be finite in float32.
  An argument that is its default is accepted.

  Args:
    factory: with annotations.
    arguments: by name.
    called: the factory's name in messages; its own by default.

  Raises:
    ValueError: names the argument, what was expected, and what came.

  >>> def scaled(rank: int, alpha: float | None = None): ...
  >>> check_arguments(scaled, {'rank': 2, 'alpha': None})
  >>> check_arguments(scaled, {'rank': 2.0})
  Traceback (most recent call last):
    ...
  ValueError: scaled: rank: expected an integer, got 2.0
  """
  hints = _hints(factory)
  for name, value in arguments.items():
    hint, kind, default = hints.get(name, (Any, None, None))
    several = {_ARGS: lambda value: value, _KWARGS: lambda value: value.values()}
    for each in several[kind](value) if kind in several else (value,):
      wanted = None if each is default else expected(each, hint)
      if wanted is not None:
        raise ValueError(
          f'{called or factory.__name__}: {name}: expected {wanted}, got {_shown(each)}'
        )


def checked(function: Callable[P, R]) -> Callable[P, R]:
  """Decorates a function so that each call checks its arguments against their annotations.

  Factories that are `recorded` (see `pecft_jax.settings`) are checked without it.

  >>> @checked
  ... def first(n: int): ...
  >>> first('2')
  Traceback (most recent call last):
    ...
  ValueError: first: n: expected an integer, got '2'
  """
  signature = inspect.signature(function)

  @functools.wraps(function)
  def call(*args: P.args, **kwargs: P.kwargs) -> R:
    check_arguments(function, signature.bind(*args, **kwargs).arguments)
    return function(*args, **kwargs)

  return call


def check_fields(record: Any) -> None:
  """Checks the fields of a dataclass or a NamedTuple against their annotations.

  Raises:
    ValueError: as `check_arguments`.

  >>> import typing
  >>> class Size(typing.NamedTuple):
  ...   width: int
  >>> check_fields(Size('8'))
  Traceback (most recent call last):
    ...
  ValueError: Size: width: expected an integer, got '8'
  """
  kind = type(record)
  names = [f.name for f in dataclasses.fields(record)] if dataclasses.is_dataclass(record) else (
    record._fields
  )  # fmt: skip
  check_arguments(kind, {name: getattr(record, name) for name in names})


def at_least(low: float, **numbers: float | None) -> None:
  """Raises ValueError, with the name, for a number below a bound. None passes.

  >>> at_least(0, strength=1.0, decay=-0.5)
  Traceback (most recent call last):
    ...
  ValueError: decay must be at least 0, got -0.5
  """
  for name, value in numbers.items():
    if value is not None and not value >= low:
      raise ValueError(f'{name} must be at least {low}, got {value}')


def above(low: float, **numbers: float | None) -> None:
  """Raises ValueError, with the name, for a number that is not above a bound. None passes.

  >>> above(0, alpha=0.0)
  Traceback (most recent call last):
    ...
  ValueError: alpha must be positive, got 0.0
  """
  for name, value in numbers.items():
    if value is not None and not value > low:
      bound = f'above {low}' if low else 'positive'
      raise ValueError(f'{name} must be {bound}, got {value}')


def expected(value: Any, hint: Any) -> str | None:
  """What an annotation expects, in words; None where the value fits it.

  >>> expected(2, int), expected(True, int), expected(float('nan'), float | None)
  (None, 'an integer', 'a finite number or None')
  """
  origin, arms = typing.get_origin(hint), typing.get_args(hint)
  if hint in _SCALARS:
    words, fits = _SCALARS[hint]
    if hint is int and fits(value) and not -_WHOLE <= int(_plain(value)) < _WHOLE:
      return 'an integer of 64 bits'
    return None if fits(value) else words
  if origin in _UNIONS:
    found = [expected(value, arm) for arm in arms]
    return None if None in found else ' or '.join(text for text in found if text)
  if origin is typing.Annotated:
    return expected(value, arms[0])
  if origin is typing.Literal:
    return None if value in arms else f'one of {list(arms)}'
  if Callable in (origin, hint) or _is_hook(hint):
    return None if callable(value) else 'a function'
  if inspect.isclass(origin) and issubclass(origin, Mapping):
    return _mapping(value, arms)
  if inspect.isclass(origin) and issubclass(origin, Sequence):
    return _sequence(value, origin, arms)
  if _is_record(hint):
    return None if isinstance(value, hint) else f'a {hint.__name__}'
  return None


def _sequence(value: Any, origin: type, arms: tuple[Any, ...]) -> str | None:
  if isinstance(value, str | bytes | Mapping) or not _is_sequence(value):
    return 'a sequence'
  if origin is tuple and Ellipsis not in arms:
    return None if len(value) == len(arms) else f'{len(arms)} values'
  wanted = [expected(each, arms[0]) for each in value] if arms else []
  return next((f'a sequence, each of it {text}' for text in wanted if text), None)


def _mapping(value: Any, arms: tuple[Any, ...]) -> str | None:
  if not isinstance(value, Mapping):
    return 'a mapping'
  pairs = [(key, expected(each, arms[1])) for key, each in value.items()] if arms else []
  return next((f'a mapping with {text} for {key!r}' for key, text in pairs if text), None)


@functools.cache
def _hints(factory: Callable[..., Any]) -> dict[str, tuple[Any, Any, Any]]:
  """The annotations, kinds and defaults of a factory's arguments by name."""
  unknown: dict[str, Any] = {}  # Types that are imported for type checkers alone: not checked.
  while True:
    try:
      hints = typing.get_type_hints(factory, localns=dict(unknown), include_extras=True)
      break
    except NameError as error:
      if error.name is None or error.name in unknown:
        raise
      unknown[error.name] = Any
  parameters = inspect.signature(factory).parameters
  return {
    name: (hints[name], each.kind, each.default)
    for name, each in parameters.items()
    if name in hints
  }


def _is_hook(hint: Any) -> bool:
  """Whether an annotation is the protocol of a function."""
  return getattr(hint, '_is_protocol', False) and '__call__' in vars(hint)


def _is_record(hint: Any) -> bool:
  if not inspect.isclass(hint) or getattr(hint, '_is_protocol', False):
    return False
  return dataclasses.is_dataclass(hint) or (issubclass(hint, tuple) and hasattr(hint, '_fields'))


def _is_sequence(value: Any) -> bool:
  return isinstance(value, Sequence) or getattr(value, 'ndim', 0) == 1


def _plain(value: Any) -> Any:
  """A numpy scalar or a concrete jax scalar as a Python number; other values as they are."""
  if getattr(value, 'ndim', None) == 0 and hasattr(value, 'item') and not hasattr(value, 'aval'):
    return value.item()
  known = getattr(value, 'ndim', None) == 0 and hasattr(value, 'addressable_shards')
  return value.item() if known else value


def _is_integer(value: Any) -> bool:
  value = _plain(value)
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  value = _plain(value)
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value) and abs(value) <= _LARGEST


def _shown(value: Any) -> str:
  if inspect.isroutine(value):
    return f'the function {value.__name__}; call it, as in {value.__name__}(...)'
  if isinstance(value, type):
    return f'the class {value.__name__}'
  if isinstance(value, bool | int | float | str | bytes | None):
    return repr(value)
  text = repr(value)
  return text if len(text) <= 60 else f'a {type(value).__name__}'


_SCALARS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
  int: ('an integer', _is_integer),
  float: ('a finite number', _is_number),
  bool: ('True or False', lambda value: isinstance(_plain(value), bool)),
  str: ('a string', lambda value: isinstance(value, str)),
  type(None): ('None', lambda value: value is None),
  None: ('None', lambda value: value is None),
}
