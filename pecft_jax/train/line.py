"""Progress of a run in one line, as wide as there is room for."""

from typing import NamedTuple

_BARS = (24, 10)  # Characters of the bar, where there is one.


class Shown(NamedTuple):
  """The parts of a line.

  Attributes:
    name: what runs.
    share: that is done, in [0, 1].
    task: as in `task 2/10`.
    inside: where in the task, most important part first.
    left: the time left, as in `1:20 left`; empty before there is an estimate.
  """

  name: str
  share: float
  task: str
  inside: tuple[str, ...] = ()
  left: str = ''


def fitted(shown: Shown, width: int) -> str:
  """The line, without the parts that there is no room for.

  First the bar gets shorter and goes, then what is inside of the task, the least important part
  first, then the name is cut; share, task and time left stay for as long as they fit.

  Args:
    shown: the parts.
    width: characters at most.

  >>> shown = Shown('ease', 0.25, 'task 1/4', ('step 30/40', 'loss 0.5'), '1:20 left')
  >>> print(fitted(shown, 80))
  ease ━━━━━━────────────────── 25 % task 1/4 · step 30/40 · loss 0.5 · 1:20 left
  >>> print(fitted(shown, 40))
  ease 25 % task 1/4 · 1:20 left
  """
  inside = [shown.inside[:n] for n in range(len(shown.inside), -1, -1)]
  choices = [(bar, inside[0]) for bar in _BARS] + [(0, parts) for parts in inside]
  for bar, parts in choices:
    line = ' '.join(filter(None, (shown.name, drawn(shown.share, bar), _rest(shown, parts))))
    if len(line) <= width:
      return line
  rest = _rest(shown, ())
  room = width - len(rest) - 1
  return (f'{shown.name[: room - 1]}… {rest}' if room > 1 else rest)[: max(0, width)]


def plain(shown: Shown) -> str:
  """The line with all of its parts and without a bar, for a log."""
  return f'{shown.name}: {_rest(shown, shown.inside)}'


def drawn(share: float, width: int) -> str:
  """A bar of so many characters."""
  done = round(min(max(share, 0.0), 1.0) * width)
  return '━' * done + '─' * (width - done)


def _rest(shown: Shown, inside: tuple[str, ...]) -> str:
  parts = (shown.task, *inside, shown.left)
  return f'{int(100 * shown.share + 1e-9)} % ' + ' · '.join(filter(None, parts))
