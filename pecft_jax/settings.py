"""The settings of a run, as JSON: each factory's name with all of its arguments.

A factory that is decorated with `recorded` puts `settings` on the record that it returns. They are
nested where a record takes others, and are what config.json, results.json and reports show: two
records with equal settings compute the same.

How values count: numbers, strings and lists by value; arrays by dtype, shape and digest; records
and dataclasses by their fields, and by the source of a class of the user's own; functions by
qualified name, digest of their source, what they close over, and the constants, functions and
classes of their module that they read. Anything else cannot be identified, and is refused.
"""

import collections
import dataclasses
import enum
import functools
import inspect
import json
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np

from pecft_jax.arguments import check_arguments
from pecft_jax.sources import (
  class_sha256,
  closed_over,
  counts_by_name,
  file_sha256,
  globals_read,
  is_library,
  qualified_name,
  sha256_of_json,
  source_name,
  source_sha256,
)
from pecft_jax.values import enum_name, simple

P = ParamSpec('P')
R = TypeVar('R')
# Values identified so far, by id; holding the value keeps its id valid.
Seen = dict[int, tuple[Any, Any]]

_REMEDY = (
  'pass numbers, strings, arrays, records or functions that close over these; decorate the factory '
  'that makes it with `recorded` of pecft_jax.settings; or give the record settings by hand, as in '
  "record._replace(settings={'name': 'mine', 'version': 1})"
)
_LINE = 200  # Characters of settings in a `repr`.
# Keys reserved in the JSON of a mapping.
_OWN_KEYS = {'name', 'order', 'items', 'default'}
# Their wrappers (`jit`, `lru_cache`) compute what is wrapped.
_WRAPPERS = {'jax', 'jaxlib', 'functools'}
_RULES = ('jvp', 'fwd', 'bwd')  # Of functions with a derivative of their own.
# Decorators of this library that leave a function as it is.
_DECORATORS = {'pecft_jax.settings', 'pecft_jax.arguments'}


class Settings(dict[str, Any]):
  """The settings that a factory gave to a record.

  Attributes:
    fields: the record's other fields as the factory made them: a field that was
      changed later (`_replace`) counts, too.
  """

  fields: Mapping[str, Any]

  def __init__(self, values: Mapping[str, Any], fields: Mapping[str, Any]):
    super().__init__(values)
    self.fields = fields

  def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
    """So that records with settings stay hashable."""
    return hash(sha256_of_json(self))


@overload
def recorded(factory: Callable[P, R]) -> Callable[P, R]: ...


@overload
def recorded(
  *,
  name: str | None = None,
  ignored: Collection[str] = (),
  defaults: Mapping[str, Callable[[], Any]] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def recorded(
  factory: Callable[..., Any] | None = None,
  *,
  name: str | None = None,
  ignored: Collection[str] = (),
  defaults: Mapping[str, Callable[[], Any]] | None = None,
) -> Any:
  """Decorates a factory, so that what it returns carries its name and arguments.

  Defaults count as if they were given. A factory that calls another replaces the settings of that
  one by its own. Factories outside of this library also count by the digest of their source.

  Args:
    factory: returns a NamedTuple or a dataclass with a field `settings`, or a function.
    name: in the settings; the factory's own by default.
    ignored: arguments that change no result (`remat`).
    defaults: functions that make the value of an argument that is None, which counts as if given.

  Raises:
    ValueError: when the factory is called with something that cannot be identified, or that is not
      of the annotated type (see `pecft_jax.arguments`).

  >>> from pecft_jax.peft import lora
  >>> lora(rank=4).settings['rank']
  4
  """
  if factory is None:
    decorator: Any = recorded
    return functools.partial(decorator, name=name, ignored=ignored, defaults=defaults)
  signature = inspect.signature(factory)
  called = name or factory.__name__
  own = {} if is_library(factory) else {'source': source_sha256(factory)}

  @functools.wraps(factory)
  def make(*args: Any, **kwargs: Any) -> Any:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    check_arguments(factory, bound.arguments, called)
    found = factory(*args, **kwargs)
    arguments = {k: v for k, v in bound.arguments.items() if k not in ignored}
    for argument, default in (defaults or {}).items():
      if arguments[argument] is None:
        arguments[argument] = default()
    values = {'name': called, **own, **_named(arguments, called)}
    return _with_settings(found, values, called)

  setattr(make, 'defaults', dict(defaults or {}))  # noqa: B010  Read by `defaults_of`.
  setattr(make, 'recorded_name', called)  # noqa: B010  Read by `recorded_name`.
  return make


def defaults_of(factory: Callable[..., Any]) -> Mapping[str, Callable[[], Any]]:
  """The functions that make the arguments whose default is None, of a `recorded` factory.

  >>> from pecft_jax.continual import ease
  >>> defaults_of(ease)['peft'].__name__
  'adaptformer'
  """
  return getattr(factory, 'defaults', {})


def recorded_name(factory: Any) -> str | None:
  """The name that settings have of a `recorded` factory; None for anything else.

  >>> from pecft_jax.peft import lora
  >>> recorded_name(lora), recorded_name(len)
  ('lora', None)
  """
  found = getattr(factory, 'recorded_name', None)
  return found if isinstance(found, str) else None


def settings_of(thing: Any) -> Any:
  """The settings of a record or a function, as plain JSON.

  A record that was made by hand counts by its name and the digest of its functions; one that was
  changed with `_replace`, by its settings and what was changed.

  >>> from pecft_jax.peft import bitfit
  >>> settings_of(bitfit())
  {'name': 'bitfit'}
  >>> settings_of(bitfit()._replace(merge=None))['changed']
  {'merge': None}

  Raises:
    ValueError: if it cannot be identified.
  """
  return _identified(thing, type(thing).__name__, {})


def one_line(settings: Any) -> str:
  """Settings in a line, for messages and tables.

  >>> one_line({'name': 'ewc', 'inner': {'name': 'finetune', 'masked': False}, 'strength': 10.0})
  'ewc(inner=finetune(masked=False), strength=10.0)'
  """
  if isinstance(settings, Mapping) and isinstance(settings.get('name'), str):
    arguments = [f'{k}={one_line(v)}' for k, v in settings.items() if k != 'name']
    return f'{settings["name"]}({", ".join(arguments)})'
  if isinstance(settings, Mapping) and 'function' in settings:
    return settings['function'].rpartition('.')[2]
  if isinstance(settings, Mapping):
    return '{' + ', '.join(f'{k}: {one_line(v)}' for k, v in settings.items()) + '}'
  if isinstance(settings, list):
    return '[' + ', '.join(map(one_line, settings)) + ']'
  return str(settings)


def record_line(record: Any) -> str:
  """The `repr` of a record with settings: its type and the settings, cut where they get long.

  >>> from pecft_jax.problems import classification
  >>> record_line(classification)
  'Problem(classification())'
  """
  text = one_line(record.settings) if record.settings else getattr(record, 'name', 'no settings')
  short = text if len(text) <= _LINE else f'{text[: _LINE - 1]}…'
  return f'{type(record).__name__}({short})'


def wrappers_of(settings: Mapping[str, Any]) -> list[str]:
  """The names of the wrappers around a method, innermost first.

  >>> wrappers_of({'name': 'er', 'inner': {'name': 'ewc', 'inner': {'name': 'finetune'}}})
  ['ewc', 'er']
  """
  inner = settings.get('inner')
  return [*wrappers_of(inner), settings['name']] if isinstance(inner, Mapping) else []


def transform_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
  """The settings of the transform that a method trains; None where it trains none.

  >>> transform_of({'name': 'ewc', 'inner': {'name': 'joint', 'peft': {'name': 'bitfit'}}})
  {'name': 'bitfit'}
  """
  inner = settings.get('inner')
  return transform_of(inner) if isinstance(inner, Mapping) else settings.get('peft')


def _with_settings(found: Any, values: dict[str, Any], called: str) -> Any:
  fields = _fields(found)
  if fields is not None and 'settings' in fields:
    rest = {name: value for name, value in fields.items() if name != 'settings'}
    settings = Settings(values, rest)
    if dataclasses.is_dataclass(found):
      return dataclasses.replace(found, settings=settings)  # pyright: ignore[reportArgumentType]
    return found._replace(settings=settings)
  if isinstance(found, types.FunctionType):
    found.settings = values  # pyright: ignore[reportFunctionMemberAccess]
    return found
  raise TypeError(
    f'{called} is recorded: expected it to return a function, or a record with a field settings; '
    f'got {type(found).__name__}'
  )


def _identified(value: Any, where: str, seen: Seen) -> Any:
  """A value as JSON. Raises ValueError where it cannot be identified."""
  if (found := simple(value)) is not None or value is None:
    return found
  if id(value) not in seen:
    seen[id(value)] = value, {'again': type(value).__name__}  # For a function that calls itself.
    try:
      seen[id(value)] = value, _compound(value, where, seen)
    except ValueError:
      del seen[id(value)]
      raise
  return seen[id(value)][1]


def _compound(value: Any, where: str, seen: Seen) -> Any:
  each = lambda values: [_identified(v, f'{where}[{i}]', seen) for i, v in enumerate(values)]
  if isinstance(value, enum.Enum):
    return {'enum': enum_name(value), 'value': _identified(value.value, where, seen)}
  if isinstance(value, type):
    return _class(value)
  if isinstance(value, types.ModuleType):
    return {'module': value.__name__, **({} if is_library(value) else file_sha256(value))}
  if isinstance(getattr(value, 'settings', None), Mapping):
    return _recorded(value, where, seen)
  fields = _fields(value)
  if fields is not None and 'settings' in fields:
    return _by_hand(value, fields, where, seen)
  if fields is not None:
    return _record(value, fields, where, seen)
  if isinstance(value, Mapping):
    return _mapping(value, where, seen)
  if isinstance(value, list | tuple | range):
    return each(value)
  if isinstance(value, set | frozenset):
    return {'set': sorted(each(value), key=sha256_of_json)}
  if type(value) is np.ndarray and value.dtype == object:
    return {'array': f'object{list(value.shape)}', 'of': each(value.ravel().tolist())}
  if isinstance(value, functools.partial):
    parts = {'of': value.func, 'args': value.args, 'keywords': value.keywords}
    return {'name': 'partial', **_named(parts, where, seen)}
  return _callable(value, where, seen)


def _callable(value: Any, where: str, seen: Seen) -> Any:
  """A function, a method, or what wraps one. Raises ValueError for anything else."""
  owner = getattr(value, '__self__', None)  # A method's object, or a module.
  if callable(value) and owner is not None and not isinstance(owner, types.ModuleType):
    found = {'method': value.__name__, 'of': _identified(owner, where, seen)}
    function = getattr(value, '__func__', None)
    own = isinstance(function, types.FunctionType) and not is_library(function)
    return {**found, 'function': _identified(function, where, seen)} if own else found
  if callable(value) and counts_by_name(value):
    return {'function': qualified_name(value)}
  wrapped = getattr(value, '__wrapped__', None)
  if isinstance(value, types.FunctionType):
    ours = value.__globals__.get('__name__') in _DECORATORS and wrapped is not None
    return _identified(wrapped, where, seen) if ours else _function(value, where, seen)
  if callable(wrapped) and type(value).__module__.partition('.')[0] in _WRAPPERS:
    found = _identified(wrapped, where, seen)
    rules = {k: rule for k in _RULES if (rule := getattr(value, k, None)) is not None}
    return {'of': found, **_named(rules, where, seen)} if rules else found
  raise ValueError(f'{where}: nothing says which {type(value).__name__} this is; {_REMEDY}')


def _recorded(value: Any, where: str, seen: Seen) -> dict[str, Any]:
  settings = value.settings
  found = dict(settings)
  if not isinstance(settings, Settings):
    _check_json(found, where)
  else:
    fields = _fields(value) or {}
    changed = {k: v for k, v in fields.items() if v is not settings.fields.get(k, settings)}
    changed.pop('settings', None)
    if changed:
      found['changed'] = _named(changed, where, seen)
  return found


def _check_json(settings: Mapping[str, Any], where: str) -> None:
  try:
    json.dumps(settings, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{where}: expected settings that are plain JSON, got {settings!r:.80}: {error}'
    ) from error


def _record(value: Any, fields: Mapping[str, Any], where: str, seen: Seen) -> dict[str, Any]:
  """A NamedTuple or dataclass by its fields; a class of the user's own by its source, too."""
  found = {'name': type(value).__name__, **_named(fields, where, seen)}
  if is_library(type(value)):
    return found
  found['class'] = class_sha256(type(value))
  if callable(value):
    found['call'] = _identified(type(value).__call__, where, seen)
  return found


def _by_hand(value: Any, fields: Mapping[str, Any], where: str, seen: Seen) -> dict[str, Any]:
  """A record without settings: its functions, and one digest of everything."""
  given = {k: v for k, v in fields.items() if v is not None and k != 'settings'}
  name = given.get('name', type(value).__name__)
  found = _named(given, str(name), seen)
  functions = {k: v for k, v in found.items() if callable(given.get(k))}
  return {'name': name, 'by_hand': functions, 'sha256': sha256_of_json(found)}


def _function(value: types.FunctionType, where: str, seen: Seen) -> dict[str, Any]:
  name = qualified_name(value)
  inside = f'{where}: {value.__name__}'
  held = closed_over(value)
  if is_library(value):  # Where no axis was named, `vmap` has a bare object, which has no state.
    held = {k: 'object' if type(v) is object else v for k, v in held.items()}
  around = _named(held, f'{inside} closes over', seen)
  plain = {k: v for k, v in around.items() if isinstance(v, bool | int | float | str)}
  source = source_name(value) if is_library(value) else source_sha256(value)
  parts = {'source': source, 'around': around}
  if not is_library(value):
    read = {k: _global(v, f'{inside} reads {k}', seen) for k, v in globals_read(value).items()}
    parts['globals'] = {k: v for k, v in read.items() if v is not None}
  found = {'function': name, 'sha256': sha256_of_json(parts)}
  return {**found, 'closed_over': plain} if plain else found


def _global(value: Any, where: str, seen: Seen) -> Any:
  """The value of a module's name; None for modules and objects without identity."""
  if isinstance(value, types.ModuleType) or (callable(value) and counts_by_name(value)):
    return None
  try:
    return _identified(value, where, seen)
  except ValueError:
    return None  # A logger, a console: the file that holds it counts where there is one.


def _class(value: type) -> dict[str, Any]:
  found = {'class': qualified_name(value)}
  return found if counts_by_name(value) else {**found, 'source': class_sha256(value)}


def _mapping(value: Mapping[Any, Any], where: str, seen: Seen) -> dict[str, Any]:
  """A mapping with the order of its keys, which may count: that of a chain does."""
  factory = value.default_factory if isinstance(value, collections.defaultdict) else None
  more = {} if factory is None else {'default': _identified(factory, where, seen)}
  if not all(isinstance(k, str) for k in value) or _OWN_KEYS & value.keys():
    pairs = [[k, v] for k, v in value.items()]
    return {'items': _identified(pairs, where, seen), **more}
  found = {k: _identified(v, f'{where}[{k!r}]', seen) for k, v in value.items()}
  return {**found, **({'order': list(value)} if len(value) > 1 else {}), **more}


def _named(values: Mapping[str, Any], where: str, seen: Seen | None = None) -> dict[str, Any]:
  """Values by the names of arguments or fields; one called `name` becomes `named`."""
  seen = {} if seen is None else seen
  other = 'named' if 'named' not in values else 'name_'
  return {
    other if k == 'name' else k: _identified(v, f'{where}: {k}', seen) for k, v in values.items()
  }


def _fields(value: Any) -> dict[str, Any] | None:
  """The fields of a NamedTuple or a dataclass; None of anything else."""
  if isinstance(value, type):
    return None
  if dataclasses.is_dataclass(value):
    return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
  if isinstance(value, tuple) and hasattr(value, '_fields'):
    return dict(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
  return None
