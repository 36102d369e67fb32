"""`NAME.option=value` of a command line to arguments of factories, typed by their signatures."""

import ast
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pecft_jax.paths import unknown

# Parameters of a factory that are not options.
_GIVEN = ('backbone', 'capacity', 'peft', 'head', 'inner')


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The options of a factory by name: its parameters, except those that take other parts.

  >>> from pecft_jax.continual import ewc
  >>> list(options_of(ewc))
  ['strength', 'decay']
  """
  named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  return {
    name: parameter
    for name, parameter in inspect.signature(factory).parameters.items()
    if parameter.kind in named and name not in _GIVEN
  }


def assign(
  texts: Iterable[str], parts: Mapping[str, Callable[..., Any]], known: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
  """Reads `NAME.option=value` texts; returns arguments by the name of the part.

  Args:
    texts: as in `ewc.strength=10`.
    parts: the factories in use by name; a name may be `package.module:name`, too.
    known: names of other parts, for messages.

  Raises:
    ValueError: for a text of another form, a part that is not in use, an option that its factory
      does not have, a value of another type, or an option that is set twice.

  >>> from pecft_jax.continual import ewc
  >>> assign(['ewc.strength=10'], {'ewc': ewc})
  {'ewc': {'strength': 10.0}}
  """
  found: dict[str, dict[str, Any]] = {}
  for text in texts:
    left, equals, value = text.partition('=')
    name, dot, option = left.strip().rpartition('.')
    if not (equals and dot and name and option):
      raise ValueError(f"expected NAME.option=value, as in 'ewc.strength=10', got {text!r}")
    if name not in parts:
      if name in known:
        raise ValueError(
          f'{text!r} sets an option of {name!r}, which is not in use; in use: {sorted(parts)}'
        )
      raise unknown('part', name, parts)
    options = options_of(parts[name])
    if option not in options:
      raise unknown(f'option of {name}', option, options)
    mine = found.setdefault(name, {})
    if option in mine:
      raise ValueError(f'{name}.{option} is set twice')
    hint = typing.get_type_hints(parts[name]).get(option, Any)
    try:
      mine[option] = read(value.strip(), hint)
    except ValueError as error:
      raise ValueError(f'{name}.{option}: {error}') from error
  return found


def read(text: str, hint: Any) -> Any:
  """A value of an annotated type from a text.

  Args:
    text: `10`, `1e-3`, `true`, `none`, `0.1,0.2` or `(0.1, 0.2)`, `{'attn': 4}`, or the text
      itself.
    hint: int, float, bool, str, None, a Literal, a tuple or sequence of these, a mapping of str to
      them, or a union of them;
      for Any, what the text is in Python, else the text.

  Raises:
    ValueError: if the text is no such value, or the type cannot be written as a text.

  >>> read('8', float | None), read('none', float | None), read('1,2', tuple[int, ...])
  (8.0, None, (1, 2))
  """
  origin, arms = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return _literal(text)
  if origin in (typing.Union, types.UnionType):
    return _one_of(text, arms)
  if origin is typing.Literal:
    return _choice(text, arms)
  if origin in (tuple, list) or (inspect.isclass(origin) and issubclass(origin, Sequence)):
    return _several(text, origin is tuple, arms)
  if inspect.isclass(origin) and issubclass(origin, Mapping) and arms[0] is str:
    return _mapping(text, arms[1])
  reader = _READERS.get(hint)
  if reader is None:
    name = getattr(hint, '__name__', str(hint))
    raise ValueError(f'takes a {name}, which has no form on a command line: set it in code')
  return reader(text)


def _one_of(text: str, arms: Sequence[Any]) -> Any:
  # The narrowest first: every text is a string.
  order = [type(None), bool, int, float]
  rank = lambda arm: order.index(arm) if arm in order else len(order) + (arm is str)
  errors = []
  for arm in sorted(arms, key=rank):
    try:
      return read(text, arm)
    except ValueError as error:
      errors.append(str(error))
  raise ValueError('; or '.join(errors))


def _choice(text: str, arms: Sequence[Any]) -> Any:
  for arm in arms:
    if text == str(arm):
      return arm
  raise unknown('choice', text, map(str, arms))


def _several(text: str, fixed: bool, arms: Sequence[Any]) -> tuple[Any, ...]:
  inside = text[1:-1] if text[:1] + text[-1:] in ('()', '[]') else text
  texts = [each.strip() for each in inside.split(',') if each.strip()]
  if fixed and Ellipsis not in arms:
    if len(texts) != len(arms):
      raise ValueError(f'expected {len(arms)} values, got {text!r}')
    return tuple(map(read, texts, arms))
  return tuple(read(each, arms[0] if arms else Any) for each in texts)


def _mapping(text: str, hint: Any) -> dict[str, Any]:
  found = _literal(text)
  if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
    raise ValueError(f"expected a mapping, as in {{'attn': 4}}, got {text!r}")
  return {key: read(str(value), hint) for key, value in found.items()}


def _none(text: str) -> None:
  if text.lower() != 'none':
    raise ValueError(f'expected none, got {text!r}')


def _bool(text: str) -> bool:
  if text.lower() not in ('true', 'false'):
    raise ValueError(f'expected true or false, got {text!r}')
  return text.lower() == 'true'


def _int(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise ValueError(f'expected an integer, got {text!r}') from None


def _float(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise ValueError(f'expected a number, got {text!r}') from None


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text  # `{[]: 1}` is a TypeError, a thousand brackets are one of the last two.


_READERS: Mapping[Any, Callable[[str], Any]] = {
  type(None): _none,
  bool: _bool,
  int: _int,
  float: _float,
  str: lambda text: text,
}
