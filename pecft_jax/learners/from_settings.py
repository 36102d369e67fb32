"""Records made from their settings: the inverse of `pecft_jax.settings`, where it exists.

Factories of the library are called with the arguments that were recorded. Values that settings only
identify (arrays, closures, factories of the user's own) cannot be made from them: an error names
their place.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pecft_jax import backbones, continual, heads, peft, problems, recipes, schedules, typing
from pecft_jax.data import augment
from pecft_jax.settings import recorded_name, settings_of
from pecft_jax.sources import PACKAGES
from pecft_jax.typing import Backbone

_MODULES = (typing, problems, recipes, schedules, augment, backbones, peft, heads, continual)


class NotRemade(ValueError):
  """Settings from which a record cannot be made."""


@functools.cache
def known() -> Mapping[str, Any]:
  """Factories, record types and constants of the library, by their names in settings."""
  found: dict[str, Any] = {}
  for module in _MODULES:
    for value in vars(module).values():
      settings = getattr(value, 'settings', None)
      if isinstance(value, type) and hasattr(value, '_fields'):
        found.setdefault(value.__name__, value)
      elif isinstance(settings, Mapping) and not callable(value):
        found.setdefault(settings['name'], value)
      elif (name := recorded_name(value)) is not None:
        found.setdefault(name, value)
  return found


def made_from(settings: Mapping[str, Any], *, backbone: Backbone | None = None) -> Any:
  """The record that has these settings.

  Args:
    settings: as `settings_of` returns them, or read from JSON.
    backbone: used where the settings have a backbone; its settings must be equal to those.

  Raises:
    NotRemade: a ValueError, where settings are incomplete; names the place.

  >>> from pecft_jax.peft import lora
  >>> made_from({'name': 'lora', 'rank': 4}).settings['alpha'] is None
  True
  """
  found = _made(settings, str(settings.get('name')), backbone)
  complete = {**settings_of(found), **settings}
  if settings_of(found) != complete:
    differing = sorted(k for k, v in complete.items() if settings_of(found).get(k) != v)
    raise NotRemade(
      f'{settings.get("name")} was made with another version or by hand: its {differing} cannot be '
      'made from what was recorded'
    )
  return found


def _made(value: Any, where: str, backbone: Backbone | None) -> Any:
  if isinstance(value, list):
    return tuple(_made(each, f'{where}[{i}]', backbone) for i, each in enumerate(value))
  if not isinstance(value, Mapping):
    return value
  if isinstance(value.get('name'), str):
    return _called(value, where, backbone)
  if 'function' in value:
    return _function(value, where)
  order = value.get('order', list(value))
  if not isinstance(order, list) or {*value} - {'order'} != {*order}:
    raise NotRemade(f'{where}: {_short(value)} is known by its digest alone')
  return {key: _made(value[key], f'{where}[{key!r}]', backbone) for key in order}


def _called(settings: Mapping[str, Any], where: str, backbone: Backbone | None) -> Any:
  name = settings['name']
  make = known().get(name)
  if make is None or {'source', 'class', 'by_hand'} & settings.keys():
    raise NotRemade(f'{where}: {name} is not made by a factory of the library')
  if 'changed' in settings:
    raise NotRemade(f'{where}: fields of {name} were changed: {sorted(settings["changed"])}')
  if not callable(make):
    return make
  parameters = inspect.signature(make).parameters
  values: dict[str, Any] = {}
  for key, value in settings.items():
    if key == 'name':
      continue
    argument = 'name' if key in ('named', 'name_') and key not in parameters else key
    if argument not in parameters:
      raise NotRemade(f'{where}: {name} has no argument {argument!r} in this version')
    if argument == 'backbone' and backbone is not None:
      values[argument] = backbone
    else:
      values[argument] = _made(value, f'{where}.{argument}', backbone)
  return _bound(make, parameters, values)


def _bound(
  make: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], values: dict[str, Any]
) -> Any:
  """Calls a factory with arguments by name, also those that it takes as `*args` or `**kwargs`."""
  several, named = [], {}
  first = {}
  for key, value in values.items():
    kind = parameters[key].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
      several = list(value)
    elif kind is inspect.Parameter.VAR_KEYWORD:
      named.update(value)
    elif kind is inspect.Parameter.KEYWORD_ONLY:
      named[key] = value
    else:
      first[key] = value
  if several:
    return make(*first.values(), *several, **named)
  positional = [key for key in first if parameters[key].kind is inspect.Parameter.POSITIONAL_ONLY]
  by_name = {key: value for key, value in first.items() if key not in positional}
  return make(*(first[key] for key in positional), **by_name, **named)


def _function(value: Mapping[str, Any], where: str) -> Any:
  """A function of a library by its name. Raises NotRemade for one that is known by digest."""
  name = value['function']
  if 'closed_over' in value or name.partition('.')[0] not in PACKAGES or '<' in name:
    raise NotRemade(f'{where}: the function {name} is known by its digest alone')
  path, found = name.split('.'), None
  for cut in range(len(path) - 1, 0, -1):
    try:
      found = functools.reduce(getattr, path[cut:], importlib.import_module('.'.join(path[:cut])))
    except (ImportError, AttributeError):
      continue
    return found
  raise NotRemade(f'{where}: there is no function {name} in the versions that are installed')


def _short(value: Any) -> str:
  text = str(value)
  return text if len(text) < 60 else f'{text[:57]}…'
