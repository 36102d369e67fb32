"""The library and its peers on one accelerator: throughput, MFU, share of the roofline, memory.

    python experiments/bench_accelerator.py [--out DIR] [--budget SECONDS] [--only NAME ...]

Needs torch, timm, transformers and peft for the peers; neither grain nor tyro. Each contestant is a
process of its own with a time limit. They run one after another, those that matter most first,
until the budget is spent. A row is a line of JSON in `DIR/rows.jsonl`, written when it is there;
`DIR/table.md` comes at the end. Weights are random: cost does not depend on them.

FLOPs are those that the contest needs (`needed.py`), the same for both sides. MFU is their rate
over the vendor's figure for the device; the share of the roofline is over the rate of the side's
own matrix product. The best window of steps counts; steps are dispatched without waiting.
`--tiny` shows on any machine that everything runs.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from contest import ON_ACCELERATOR, Rig, tiny
from needed import items, needed


class Entry(NamedTuple):
  """A contestant."""

  side: str  # 'ours' or 'peers'.
  contest: str
  variant: str = ''  # One of `VARIANTS`.

  def __str__(self) -> str:
    return ' '.join(filter(None, self))


VARIANTS: dict[str, dict[str, Any]] = {
  '': {},
  'xla': {'attention': 'xla'},  # Ours, with attention as two products and a softmax.
  'unrolled': {'scan': False},  # Ours, with decoders as a Python loop.
  'remat': {'remat': True},  # Ours, with the blocks of decoders computed again.
  'eager': {'attention': 'eager'},  # Peers, with attention likewise; otherwise it is sdpa.
  'compile': {'compiled': True},  # Peers, through torch.compile.
}
# What matters most first.
PLAN = (
  Entry('ours', 'matmul'),
  Entry('peers', 'matmul'),
  Entry('ours', 'lora'),
  Entry('peers', 'lora'),
  Entry('peers', 'lora', 'compile'),
  Entry('ours', 'llama8b'),
  Entry('ours', 'llama8b', 'remat'),
  Entry('ours', 'llama2048'),
  Entry('peers', 'llama2048'),
  Entry('ours', 'l2p'),
  Entry('peers', 'l2p'),
  Entry('ours', 'l2p_cached'),
  Entry('ours', 'ease'),
  Entry('peers', 'ease'),
  Entry('ours', 'features'),
  Entry('peers', 'features'),
  Entry('ours', 'subspaces'),
  Entry('peers', 'subspaces'),
  Entry('ours', 'feed'),
  Entry('ours', 'lora', 'xla'),
  Entry('ours', 'llama1024'),
  Entry('peers', 'llama1024'),
  Entry('ours', 'llama2048', 'unrolled'),
  Entry('peers', 'lora', 'eager'),
  Entry('ours', 'llama2048', 'xla'),
  Entry('ours', 'llama8b_no_dropout'),
  Entry('peers', 'llama2048', 'compile'),
  Entry('peers', 'features', 'compile'),
  Entry('ours', 'l2p', 'xla'),
  Entry('ours', 'ease', 'xla'),
  Entry('ours', 'subspaces', 'xla'),
  Entry('ours', 'features', 'xla'),
)
# Run only where another has failed: it was too large for the device.
INSTEAD = {Entry('ours', 'llama8b', 'remat'): Entry('ours', 'llama8b')}
# Tokens/s of others, who published them: `llama8b` on one H100 in bfloat16, from the performance
# summary of NVIDIA's NeMo AutoModel (2025-10-02).
PUBLISHED = {'llama8b': 12_473.0, 'llama8b_no_dropout': 12_473.0}
PUBLISHED_ON = 'H100'
# Ours over the best peer, or over what is published.
GOALS = {'lora': 1.1, 'llama1024': 1.1, 'llama2048': 1.1, 'llama8b': 1.0}
CONTESTS = tuple(dict.fromkeys(entry.contest for entry in PLAN))
LONG = {'llama8b': 150.0, 'llama8b_no_dropout': 150.0}  # Seconds, in place of `--limit`.
OUT = pathlib.Path(__file__).parent / 'results' / 'accelerator'
LEAST = 12.0  # Seconds without which no contestant is started.


def timed(call: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict[str, float]:
  """Seconds of a call, in windows of calls that are dispatched without waiting.

  Args:
    call: what is timed.
    wait: returns when the result of a call is there.
    seconds: to spend, about; two windows at least.

  Returns:
    `first`, `best` and `median` seconds of a call, and `windows`.
  """

  def window(count: int) -> float:
    out, start = None, time.perf_counter()
    for _ in range(count):
      out = call()
    wait(out)
    return (time.perf_counter() - start) / count

  first, one = window(1), window(1)
  count = max(1, min(20, int(0.5 / max(min(one, window(1)), 1e-4))))
  found, end = [window(count), window(count)], time.perf_counter() + seconds
  while len(found) < 30 and time.perf_counter() < end:
    found.append(window(count))
  best, median = min(found), statistics.median(found)
  return {'first': first, 'best': best, 'median': median, 'windows': len(found)}


def rig_of(entry: Entry, *, small: bool) -> Rig:
  """The settings of a contestant."""
  rig = ON_ACCELERATOR._replace(**VARIANTS[entry.variant])
  return tiny(rig) if small else rig


def measure(entry: Entry, *, small: bool, seconds: float) -> dict[str, Any]:
  """A row: this process is the contestant."""
  rig = rig_of(entry, small=small)
  side: Any = importlib.import_module('bench_ours' if entry.side == 'ours' else 'bench_torch')
  found = side.build(entry.contest, rig)
  times = timed(found.call, side.wait, 0 if small else seconds)
  count, unit = items(entry.contest, rig)
  work, peak = needed(entry.contest, rig), side.peak_bytes()
  row = {
    **entry._asdict(),
    'device': side.device(),
    'ms': 1e3 * times['best'],
    'median ms': 1e3 * times['median'],
    'first s': times['first'],
    'windows': times['windows'],
    'unit': unit,
    'per s': count / times['best'],
    **found.facts,
  }
  if work is not None:
    row['TFLOP'] = work / 1e12
    row['TFLOP/s'] = work / times['best'] / 1e12
    peak_rate = vendors_rate(side.device(), rig.dtype)
    if peak_rate is not None:
      row['MFU'] = work / times['best'] / peak_rate
  if peak is not None:
    row['peak GB'] = peak / 1e9
  return row


def vendors_rate(device: str, dtype: str) -> float | None:
  """FLOP/s of a device by its vendor's figure; None where it is not known.

  Args:
    device: its name, as a framework tells it.
    dtype: of the products.
  """
  from pecft_jax.plan.chips import CHIPS

  for key, chip in CHIPS.items():
    if key in device.lower().replace(' lite', 'e').replace(' ', ''):
      return chip.bf16 if dtype == 'bfloat16' else chip.float32
  return None


def run_one(
  entry: Entry, kept: str, *, small: bool, seconds: float, limit: float
) -> dict[str, Any]:
  """The row of a contestant in a process of its own, or its `error`.

  Args:
    entry: of the plan.
    kept: directory for what contestants compile.
    small: tiny sizes.
    seconds: of timing.
    limit: seconds after which it is ended.
  """
  command = [sys.executable, __file__, '--one', *entry, '--seconds', str(seconds)]
  environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.94', **os.environ}
  # XLA keeps there which kernels it found to be fastest: contestants share most products.
  environment.setdefault('JAX_COMPILATION_CACHE_DIR', kept)
  start = time.monotonic()
  try:
    ended = subprocess.run(
      [*command, *(['--tiny'] if small else [])],
      capture_output=True,
      text=True,
      timeout=limit,
      env=environment,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {**entry._asdict(), 'error': f'took longer than {limit:.0f} s'}
  if ended.returncode:
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    # The message itself may be followed by advice.
    told = [line for line in lines if 'Error' in line or 'RESOURCE_EXHAUSTED' in line]
    said = (told or lines or [f'status {ended.returncode}'])[-1]
    return {**entry._asdict(), 'error': said[:500]}
  row = json.loads(ended.stdout.splitlines()[-1])
  return {**row, 'process s': time.monotonic() - start}


COLUMNS = (
  'contestant', 'ms', 'per s', 'TFLOP/s', 'MFU', 'of matmul', 'peak GB', 'compile s', 'of peer',
  'goal',
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Rows as Markdown; `of peer` is items/s over those of the contest's best peer."""
  fine = [row for row in rows if 'error' not in row]
  lines = [f'| {" | ".join(COLUMNS)} |', f'| --- |{" ---: |" * (len(COLUMNS) - 1)}']
  lines += [f'| {" | ".join(_cells(row, fine))} |' for row in fine]
  for row in rows:
    if 'error' in row:
      lines += ['', f'{_entry(row)}: {row["error"]}']
  return '\n'.join(lines)


def _entry(row: dict[str, Any]) -> Entry:
  return Entry(row['side'], row['contest'], row['variant'])


def _cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
  products = [each for each in rows if _entry(each) == Entry(row['side'], 'matmul')]
  share = row['TFLOP/s'] / products[0]['TFLOP/s'] if products and 'TFLOP/s' in row else None
  ratio = goal = None
  if row['side'] == 'ours' and (peer := best_peer(row['contest'], rows)):
    ratio, goal = row['per s'] / peer, GOALS.get(row['contest'])
  shown = lambda value, form: '' if value is None else format(value, form)
  return (
    str(_entry(row)),
    shown(row['ms'], '.1f'),
    f'{row["per s"]:,.0f} {row["unit"]}',
    shown(row.get('TFLOP/s'), '.1f'),
    shown(row.get('MFU'), '.2f'),
    shown(share, '.2f'),
    shown(row.get('peak GB'), '.1f'),
    shown(row.get('compile s'), '.1f'),
    shown(ratio, '.2f'),
    shown(goal, '.2f'),
  )


def done(rows: Sequence[dict[str, Any]]) -> set[Entry]:
  """Contestants that have a figure."""
  return {_entry(row) for row in rows if 'error' not in row}


def best_peer(contest: str, rows: Sequence[dict[str, Any]]) -> float | None:
  """Items per second of the fastest peer, or what is published of such a device; or None."""
  same = contest.removesuffix('_cached')
  found = [row['per s'] for row in rows if row['side'] == 'peers' and row['contest'] == same]
  on_such = all(PUBLISHED_ON in row['device'] for row in rows)
  return max(found, default=PUBLISHED.get(contest) if on_such else None)


def environment(device: str) -> str:
  """One line: the device and versions."""
  from importlib.metadata import PackageNotFoundError, version

  def told(name: str) -> str | None:
    try:
      return f'{name} {version(name)}'
    except PackageNotFoundError:
      return None

  names = ('jax', 'torch', 'timm', 'transformers', 'peft')
  return ', '.join(filter(None, (device, *map(told, names))))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--out', type=pathlib.Path, default=OUT, help='directory of the rows and the table')
  add('--budget', type=float, default=480, help='seconds of all contestants together')
  add('--limit', type=float, default=100, help='seconds of one contestant')
  add('--seconds', type=float, default=3, help='seconds of timing in each')
  add('--only', nargs='+', default=(), choices=CONTESTS, metavar='NAME', help=', '.join(CONTESTS))
  add('--tiny', action='store_true', help='small sizes, to see that everything runs')
  add('--one', nargs=3, help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the plan."""
  given = parsed(arguments)
  if given.one:
    print(json.dumps(measure(Entry(*given.one), small=given.tiny, seconds=given.seconds)))
    return
  given.out.mkdir(parents=True, exist_ok=True)
  end, rows = time.monotonic() + given.budget, []
  plan = [entry for entry in PLAN if not given.only or entry.contest in given.only]
  with (given.out / 'rows.jsonl').open('w') as file, tempfile.TemporaryDirectory() as kept:
    for entry in plan:
      if entry in INSTEAD and INSTEAD[entry] in done(rows):
        continue
      left = end - time.monotonic()
      if left < LEAST:
        row = {**entry._asdict(), 'error': 'not started: the budget was spent'}
      else:
        limit = min(max(given.limit, LONG.get(entry.contest, 0)), left)
        row = run_one(entry, kept, small=given.tiny, seconds=given.seconds, limit=limit)
      rows.append(row)
      print(json.dumps(row), file=file, flush=True)
      print(json.dumps(row), flush=True)
  device = next((row['device'] for row in rows if 'device' in row), 'no device')
  page = f'{environment(device)}\n\n{table(rows)}\n'
  (given.out / 'table.md').write_text(page)
  print(f'\n{page}')


if __name__ == '__main__':
  main()
