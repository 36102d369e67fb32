"""What compiled programs send between devices, and to the host, read off their text."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_KINDS = (
  'all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|reduce-scatter|'
  'infeed|outfeed|send|recv|custom-call'
)
_LINE = re.compile(rf'\s*(?:ROOT )?%?\S+ = (.*?) ({_KINDS})(?:-start)?\((.*)')
_SHAPE = re.compile(r'[a-z]+\d*\[([\d,]*)\]')


class Exchange(NamedTuple):
  """One instruction that moves data from device to device."""

  kind: str
  shapes: list[list[int]]  # Of the results.
  group: int | None  # How many devices take part in it together; None where pairs do.
  repeated: bool  # Whether it stands in a loop.


def exchanges(text: str) -> list[Exchange]:
  """All collectives of a program."""
  return [
    Exchange(kind, shapes, _group(rest), repeated)
    for kind, shapes, rest, repeated in _lines(text)
    if kind not in {'infeed', 'outfeed', 'send', 'recv', 'custom-call'}
  ]


def calls_home(text: str) -> list[str]:
  """Instructions that wait for the host: transfers to and from it, and calls of Python."""
  found = []
  for kind, _, rest, _ in _lines(text):
    target = re.search(r'custom_call_target="([^"]*)"', rest)
    if kind in {'infeed', 'outfeed', 'send', 'recv'} or (target and 'callback' in target[1]):
      found.append(f'{kind} {target[1] if target else ""}')
  return found


def _lines(text: str) -> Iterator[tuple[str, list[list[int]], str, bool]]:
  computation, inside = '', set()
  loops = {
    name for pair in re.findall(r'body=%([^,\s]+)|condition=%([^,\s]+)', text) for name in pair
  }
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = line.split()[0].removeprefix('%')
      if computation in loops:
        inside.add(computation)
    elif found := _LINE.match(line):
      shapes = [[int(n) for n in dims.split(',') if n] for dims in _SHAPE.findall(found[1])]
      yield found[2], shapes, found[3], computation in inside


def _group(rest: str) -> int | None:
  """The size of the groups, in any of the ways that they are written."""
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', rest):
    return len(found[1].split(','))
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]<=', rest):
    return int(found[1])
  if found := re.search(r'replica_groups=mesh\[(.*?)\].*?\{(.*?)\}', rest):
    sizes: dict[str, Any] = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  return None
