"""A plan in words and numbers: rows for tables, and the page of one plan on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pecft_jax.plan.chips import Chip
from pecft_jax.plan.estimate import Plan
from pecft_jax.plan.roofline import times
from pecft_jax.text import amount, count

if TYPE_CHECKING:  # Imported only where something is printed.
  from rich.console import Console
  from rich.table import Table

Lines = list[tuple[str, str]]

_LINES = {
  'frozen': 'frozen weights',
  'trained': 'trained parameters',
  'gradients': 'gradients',
  'optimizer': 'optimizer state',
  'continual': 'memory of the method',
  'record': 'task, counters, key',
  'batch': 'batch',
  'gathered': 'one weight, gathered',
}


def memory_rows(plan: Plan) -> Lines:
  """Bytes on each device, by use."""
  memory = plan.memory
  exact = {name: getattr(memory, name) for name in _LINES}
  rows = [
    (text, amount(exact[name], 'B'))
    for name, text in _LINES.items()
    if exact[name] or name != 'gathered'
  ]
  return [
    *rows,
    ('activations, estimated', amount(memory.activations, 'B')),
    ('total', amount(memory.total, 'B')),
  ]


def step_rows(plan: Plan) -> Lines:
  """FLOPs and bytes of a step on each device, and the bytes carried and checkpointed."""
  one = plan.unit.removesuffix('s')
  what = 'a training step' if plan.trains else 'a pass over a batch'
  return [
    ('parameters of the backbone', count(plan.backbone_parameters)),
    ('trained parameters', count(plan.trained_parameters)),
    (f'{what}, in {plan.dtype}', amount(plan.step, 'FLOP')),
    (f'a prediction, per {one}', amount(plan.predict / plan.units, 'FLOP')),
    ('to and from memory, at least', amount(plan.traffic, 'B')),
    ('sent to other devices', amount(sum(plan.sent), 'B')),
    ('checkpoint, at most', amount(plan.checkpoint, 'B')),
  ]


def lower_note(plan: Plan) -> list[str]:
  """Which frozen blocks a run computes once per example, or why none."""
  return [] if plan.lower is None else [f'Computed once per example, not in a step: {plan.lower}.']


class Expected(NamedTuple):
  """A plan on one chip."""

  share: float  # Of the chip's memory.
  bound: str
  seconds: float
  rate: float  # Images or tokens per second, over all devices.

  @property
  def fits(self) -> str:
    """Whether the chip's memory is enough."""
    return 'yes' if self.share <= 1 else 'no'


def expected(plan: Plan, chip: Chip, utilisation: float) -> Expected:
  """Times of a step on a chip that reaches a share of its roofline."""
  busy = times(chip, plan.step, plan.traffic, sum(plan.sent), plan.dtype)
  seconds = busy.step(utilisation)
  share = plan.memory.total / chip.memory
  return Expected(share, busy.bound, seconds, plan.batch * plan.units / seconds)


def chip_rows(plan: Plan, chips: Iterable[Chip], utilisation: float) -> list[tuple[str, ...]]:
  """(chip, share of its memory, does it fit, ms a step, bound by, units/s) for each chip."""
  rows = []
  for chip in chips:
    got = expected(plan, chip, utilisation)
    share = f'{got.share:.1%}' if got.share < 0.1 else f'{got.share:.0%}'
    milliseconds = f'{got.seconds * 1e3:.3g}'
    rows.append((chip.name, share, got.fits, milliseconds, got.bound, f'{got.rate:,.0f}'))
  return rows


def assumptions(plan: Plan, chips: Sequence[Chip], utilisation: float) -> list[str]:
  """The assumptions behind the figures."""
  notes = [
    *lower_note(plan),
    'Exact: weights, parameters, optimizer state, memory of the method. Activations are an '
    'estimate: programs compiled for the CPU hold 0.95 to 1.35 times as much.',
    f'Times: the busiest of matrix units, memory and links, of which {utilisation:.0%} is '
    'assumed to be reached (--utilisation). Traffic to memory is the least that there must be: '
    'attention without a fused kernel moves several times as much.',
  ]
  if len(plan.mesh) > 1:
    notes.append('Axes but data are assumed to split FLOPs evenly, activations not.')
  if any(expected(plan, chip, utilisation).seconds < 1e-3 for chip in chips):
    notes.append('Starting a step takes a fraction of a millisecond, too, which is not counted.')
  if not plan.trains:
    notes.append('The method trains nothing: a pass over the data is all that it does.')
  return notes


def print_plan(
  plan: Plan,
  chips: Sequence[Chip],
  *,
  utilisation: float,
  growth: Mapping[int, str],
  console: 'Console',
) -> None:
  """Prints the page.

  Args:
    plan: to be shown.
    chips: rows of the last table.
    utilisation: share of the roofline.
    growth: what is carried, in words, by number of tasks.
    console: to print on.
  """
  from rich.text import Text

  mesh = ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
  batch = f'batches of {plan.batch}'
  console.print(Text(f'{plan.method} on {plan.backbone}, {batch}, mesh {mesh}', style='bold'))
  parts = (
    ('Memory on each device', memory_rows(plan)),
    ('Each device computes and moves', step_rows(plan)),
    (
      'Carried from task to task',
      [(f'{t} task{"s" * (t > 1)}', text) for t, text in growth.items()],
    ),
  )
  for title, rows in parts:
    console.print(_table(title, ('', ''), rows))
  titles = ('chip', 'of its memory', 'fits', 'ms/step', 'bound by', f'{plan.unit}/s')
  console.print(_table('Expected', titles, chip_rows(plan, chips, utilisation)))
  for note in assumptions(plan, chips, utilisation):
    console.print(Text(note, style='dim'))


def _table(title: str, titles: Iterable[str], rows: Iterable[tuple[str, ...]]) -> 'Table':
  from rich.table import Table

  table = Table(title=f'\n{title}', title_justify='left', box=None, pad_edge=False,
                show_header=any(titles))  # fmt: skip
  for i, text in enumerate(titles):
    table.add_column(text, justify='right' if i else 'left', no_wrap=True)
  for label, *cells in rows:
    table.add_row(label, *cells, style='bold' if label == 'total' else None)
  return table
