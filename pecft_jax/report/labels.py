"""Short labels of runs: only the settings that differ between them, under short names."""

from collections.abc import Mapping, Sequence
from typing import Any

from pecft_jax.text import listed

_MOST = 3  # Settings on a label.
_LONG = 24  # Letters of a value.


def differing(mine: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]]) -> str:
  """The settings of one run that are others in another run, as `rank 8, epochs 5`.

  Settings with the same values in all runs (a flag, and the option that it sets) are
  named once, under the shortest name.

  Args:
    mine: by dotted name; one of `all_of_them`.
    all_of_them: the runs that it must not be confused with.

  >>> differing({'a.rank': 8, 'a.epochs': 5}, [{'a.rank': 8, 'a.epochs': 5}, {'a.rank': 4}])
  'epochs 5, rank 8'
  >>> differing({'a.rank': 8}, [{'a.rank': 8}])
  ''
  """
  names = sorted(set().union(*all_of_them), key=lambda name: (name.count('.'), len(name), name))
  by_values: dict[tuple[str, ...], str] = {}
  for name in names:
    values = tuple(repr(settings.get(name)) for settings in all_of_them)
    if len(set(values)) > 1:
      by_values.setdefault(values, name)
  found = sorted(by_values.values())
  shown = [f'{short(name, found)} {_value(mine.get(name))}' for name in found[:_MOST]]
  more = [f'{len(found) - _MOST} more'] if len(found) > _MOST else []
  return ', '.join(shown + more)


def short(name: str, others: Sequence[str]) -> str:
  """The end of a dotted name that no other one has.

  >>> short('method.peft.rank', ['method.peft.rank', 'training.epochs'])
  'rank'
  """
  parts = name.split('.')
  for count in range(1, len(parts)):
    end = '.'.join(parts[-count:])
    if sum(other == end or other.endswith(f'.{end}') for other in others) == 1:
      return end.replace('_', ' ')
  return name.replace('_', ' ')


def _value(value: Any) -> str:
  text = listed(value, 4)
  return text if len(text) <= _LONG else f'{text[: _LONG - 1]}…'
