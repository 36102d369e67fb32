"""Checks the content of results.json and of the rows of metrics.jsonl before it is used."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
  return isinstance(value, str)


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _float(value: Any) -> bool:
  """NaN and infinities are left out by the reader."""
  return _number(value) or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: float) -> bool:
  return abs(value) <= 2**1000 and math.isfinite(value)


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _positive(value: Any) -> bool:
  return _whole(value) and value > 0


def _object(value: Any) -> bool:
  return isinstance(value, dict)


def _list_of(check: Check) -> Check:
  return lambda value: isinstance(value, list) and all(map(check, value))


def _object_of(check: Check) -> Check:
  return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Check) -> Check:
  return lambda value: value is None or check(value)


def _amount(value: Any) -> bool:
  return _number(value) and value >= 0


def _share(value: Any) -> bool:
  return _number(value) and 0 <= value <= 1


def _scenario(value: Any) -> bool:
  kind = value.get('kind') if isinstance(value, dict) else value
  return kind is None or _text(kind)


def _reference(value: Any) -> bool:
  return _object_of(_or_none(_number))(value)


_RESULTS: Mapping[str, tuple[Check, str]] = {
  'name': (_or_none(_text), 'text'),
  'status': (lambda value: value in ('done', 'running'), "'done' or 'running'"),
  'scenario': (_scenario, 'text'),
  'method': (_or_none(_text), 'text'),
  'wrappers': (_or_none(_list_of(_text)), 'a list of names'),
  'tasks': (_or_none(_list_of(_text)), 'a list of names'),
  'class_names': (_or_none(_list_of(_text)), 'a list of names'),
  'test_sizes': (_or_none(_list_of(_positive)), 'a list of positive whole numbers'),
  'per_class_accuracy': (_or_none(_list_of(_or_none(_share))), 'a list of shares in [0, 1]'),
  'class_test_sizes': (_or_none(_list_of(_whole)), 'a list of whole numbers'),
  'metrics': (_or_none(_object_of(_or_none(_float))), 'an object of numbers'),
  'efficiency': (_or_none(_object), 'an object'),
  'identity': (_or_none(_object), 'an object'),
  'environment': (_or_none(_object), 'an object'),
  'settings': (_or_none(_object), 'an object'),
  'compilations': (_or_none(_object_of(_whole)), 'an object of whole numbers'),
  'references': (_or_none(_object_of(_reference)), 'an object of objects of numbers'),
  'state_sha256': (_or_none(_text), 'text'),
  'seed': (_or_none(_whole), 'a whole number'),
}
_EFFICIENCY_LISTS = ('seconds_per_task', 'state_bytes_per_task')

_ROWS: Mapping[str, tuple[Check, str]] = {
  'kind': (_text, 'text'),
  'task': (_whole, 'a whole number'),
  'epoch': (_whole, 'a whole number'),
  'step': (_whole, 'a whole number'),
  'loss': (_or_none(_number), 'a number'),
  'accuracy': (_or_none(_number), 'a number'),
  'learning_rate': (_or_none(_number), 'a number'),
  'seconds': (_or_none(_number), 'a number'),
  'evaluated': (_or_none(_list_of(_or_none(_number))), 'a list of numbers'),
  'aware': (_or_none(_list_of(_or_none(_number))), 'a list of numbers'),
}


def check_results(results: Mapping[str, Any], where: Any) -> None:
  """Checks the types of what results.json holds, without its matrices and its measure.

  Args:
    results: the content.
    where: the file, for messages.

  Raises:
    ValueError: names the file and the entry. Entries that are not known are labels, and free.
  """
  if problem := _problem(results, _RESULTS):
    raise ValueError(f'{where}: {problem}')
  for key, value in (results.get('efficiency') or {}).items():
    several = key in _EFFICIENCY_LISTS
    check = _or_none(_list_of(_or_none(_amount))) if several else _or_none(_amount)
    if not check(value):
      expected = 'a list of numbers' if several else 'a number'
      raise ValueError(f'{where}: expected {expected} for efficiency.{key}, got {value!r:.60}')


def row_problem(row: Mapping[str, Any]) -> str | None:
  """The error in a row of the log; None for a valid one.

  >>> row_problem({'kind': 'train', 'task': 0, 'loss': 'low'})
  "expected a number for loss, got 'low'"
  """
  return _problem(row, _ROWS)


def _problem(entries: Mapping[str, Any], checks: Mapping[str, tuple[Check, str]]) -> str | None:
  for key, (check, expected) in checks.items():
    if key in entries and not check(entries[key]):
      return f'expected {expected} for {key}, got {entries[key]!r:.60}'
  return None
