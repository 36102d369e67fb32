"""How numbers and names are written, everywhere: tables, pages, messages.

Bytes and counts are decimal: 1 kB is 1000 bytes.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')
_MINUS = '\u2212'


def amount(value: float, unit: str) -> str:
  """A quantity with three digits and a decimal prefix.

  >>> amount(1_234_567, 'FLOP'), amount(999, 'B')
  ('1.23 MFLOP', '999 B')
  """
  power = 0
  # What would be rounded to 1000 is one of the next unit.
  while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
    value, power = value / 1000, power + 1
  return f'{value:.3g} {_PREFIXES[power]}{unit}'.rstrip()


def size(value: float) -> str:
  """Bytes.

  >>> size(1_500_000)
  '1.5 MB'
  """
  return amount(value, 'B')


def count(value: float) -> str:
  """A large number of things.

  >>> count(1_234_567), count(999)
  ('1.23 M', '999')
  """
  return amount(value, '')


def duration(seconds: float) -> str:
  """A time span, in two units at most.

  >>> [duration(s) for s in (0.04, 12.34, 245, 7620, 200_000)]
  ['0.04 s', '12.3 s', '4 min 05 s', '2 h 07 min', '2 d 08 h']
  """
  if seconds < 1:
    return f'{seconds:.1g} s' if seconds else '0 s'
  if round(seconds, 1) < 60:
    return f'{seconds:.1f} s'
  minutes, left = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {left:02d} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  if hours < 24:
    return f'{hours} h {minutes:02d} min'
  days, hours = divmod(round(seconds / 3600), 24)
  return f'{days} d {hours:02d} h'


def percent(fraction: float, digits: int = 1) -> str:
  """A fraction in percent.

  >>> percent(0.9123), percent(0.5, 0)
  ('91.2 %', '50 %')
  """
  return f'{number(100 * fraction, digits)} %'


def points(difference: float, digits: int = 1) -> str:
  """A signed difference of fractions, in percentage points.

  >>> points(0.41), points(-0.0001)
  ('+41.0', '0.0')
  """
  return signed(100 * difference, digits)


def signed(value: float, digits: int = 1) -> str:
  """A rounded number with its sign.

  >>> signed(0.25, 2)
  '+0.25'
  """
  text = number(value, digits)
  return text if text.startswith(_MINUS) or not float(text) else f'+{text}'


def number(value: float, digits: int = 1) -> str:
  """Rounded, with a real minus sign and never minus zero.

  >>> number(1.25), number(-0.04)
  ('1.2', '0.0')
  """
  text = f'{value:.{digits}f}'
  return text.replace('-', _MINUS) if float(text) else text.lstrip('-')


def rounded(value: float, digits: int = 3) -> str:
  """A number in so many significant digits, with a real minus sign.

  >>> rounded(0.0123456), rounded(1234.5), rounded(-2.0)
  ('0.0123', '1230', '−2')
  """
  text = f'{value:.{digits}g}'
  if 'e' in text and abs(value) >= 1:
    text = f'{float(text):.0f}'
  return text.replace('-', _MINUS) if float(text) else '0'


def listed(values: Any, most: int = 12) -> str:
  """A setting on one line; long sequences are cut and say how long they are.

  >>> listed([1, 2, 3, 4], 2)
  '1, 2, … (4 in all)'
  """
  if isinstance(values, str) or not isinstance(values, Sequence):
    return str(values)
  if len(values) <= most:
    return ', '.join(listed(value, most) for value in values) or 'none'
  return ', '.join(str(value) for value in values[:most]) + f', … ({len(values)} in all)'


def shortened(names: Iterable[str], most: int = 24) -> str:
  """A list of names for an error message, cut where it gets long."""
  names = list(names)
  more = f', … ({len(names) - most} more)' if len(names) > most else ''
  return '[' + ', '.join(repr(name) for name in names[:most]) + more + ']'


def unknown(what: str, name: str, choices: Iterable[str]) -> ValueError:
  """The error for a name that is none of the choices; suggests the nearest."""
  choices = sorted(choices)
  near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  return ValueError(f'unknown {what} {name!r}{hint} choices: {choices}')
