"""The library's steps against those of its peers, in turn, on this machine.

    python experiments/bench_peers.py [CONTEST ...] [--rounds N] [--threads N] [--out DIR]

Needs torch, timm, transformers and peft: pip install -e '.[parity]'. Each contestant is a
process of its own, both keep their heap, and they step in turn. The best step of each counts.
Weights are random: cost does not depend on them.

A ratio of two frameworks carries their matrix products in it. Therefore both rates stand beside it,
measured before each step, with what the ratio would be if they were equal. The share of the
roofline is the FLOPs that a step needs (`needed.py`) over the rate of products and the time. CPU
seconds are those of all threads: less than wall seconds times threads is time that a core waited.

`DIR/table.md` and `DIR/rounds.json` (every step of every round, with the environment) are written
after each contest. Nothing else should run on the machine: ten minutes on two cores.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import tyro
from contest import ON_CPU, Rig
from contest import tiny as shrunk
from needed import needed
from rich.console import Console
from rich.table import Table

from pecft_jax.environment import environment


class Row(NamedTuple):
  """A ratio to be found, and how low it should be at equal rates of products."""

  title: str
  ours: str  # Names of contests.
  peers: str
  goal: float | None = None
  share: float | None = None  # Of the roofline, that ours should reach.


ROWS = (
  Row('LoRA r=8 q,v, ViT-B/16 b8 / transformers + peft', 'lora', 'lora', 0.95, 0.90),
  Row('L2P, ViT-B/16 b8 / plain torch', 'l2p', 'l2p', 0.88, 0.90),
  Row('L2P with cached queries / plain torch without', 'l2p_cached', 'l2p', 0.60, 0.90),
  Row('EASE adapter step, ViT-B/16 b8 / plain torch', 'ease', 'ease', 0.95, 0.90),
  Row('EASE prediction, 20 tasks, ViT-Ti/16 b8 / plain torch', 'subspaces', 'subspaces', 0.75),
  Row('frozen features, ViT-B/16 b8 / timm', 'features', 'features', 0.97),
  Row('LoRA r=8 q,v, Llama 58M b8 s128 / transformers + peft', 'llama', 'llama', 0.92, 0.80),
  Row('LoRA r=8 q,v, ViT-Ti/16 b32 / JAX by hand', 'by_hand', 'by_hand', 1.02),
)
# Run by name alone: RanPAC's peer takes minutes for a step.
MORE = (
  Row('linear probe, ViT-B/16 b8 / timm', 'probe', 'probe'),
  Row('linear probe on cached features / timm without', 'probe_cached', 'probe', 0.0005),
  Row('LoRA r=8 all linears, Llama 58M b8 s128', 'llama_all', 'llama_all', None, 0.80),
  Row('RanPAC choice and solve, M = 10,000 / torch', 'ranpac_end', 'ranpac_end', 0.06),
  Row('RanPAC from features to weights / torch', 'ranpac', 'ranpac', 0.06),
)
CONTESTS = tuple(dict.fromkeys(row.peers for row in ROWS))
ALL = (*CONTESTS, *dict.fromkeys(row.peers for row in MORE))
FEW_ROUNDS = {'ranpac': 2, 'ranpac_end': 2}
TEMPORARIES = {'l2p': 1200.0}  # MB that the program of ours may hold at most.
PEERS = ('torch', 'timm', 'transformers', 'peft')
OUT = pathlib.Path(__file__).parent / 'results' / 'peers'


class Contestant:
  """A process that steps when asked to."""

  def __init__(self, module: str, contests: Sequence[str], threads: int, *, small: bool):
    """Starts it, and waits until it is warm.

    Raises:
      SystemExit: if it cannot be started; it has said why.
    """
    size = 'tiny' if small else 'full'
    command = [sys.executable, __file__, 'contestant', module, ','.join(contests), size]
    command += [str(threads)]
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'OPENBLAS_NUM_THREADS': str(threads)}
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    self.facts = self._answer()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(self._process.wait() or 1)
    return json.loads(line)

  def ask(self, contest: str) -> dict[str, float]:
    """One step: `wall` and `cpu` seconds, and `rate`, FLOP/s of a product just before."""
    assert self._process.stdin is not None
    self._process.stdin.write(f'{contest}\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()


def rig_of(*, small: bool) -> Rig:
  """The sizes of all contests."""
  return shrunk(ON_CPU) if small else ON_CPU


def contestant(module: str, contests: str, size: str, threads: int) -> None:
  """The life of such a process: a line of facts, then a line of figures for each that it reads."""
  from pecft_jax.train.heap import keep_heap

  os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
  keep_heap()
  side: Any = importlib.import_module(module)
  rig = rig_of(small=size == 'tiny')
  ready = {name: side.build(name, rig) for name in contests.split(',')}
  product = side.build('matmul', rig)

  def timed(contest: Any) -> dict[str, float]:
    if contest.ready is not None:
      side.wait(contest.ready())
    wall, cpu = time.perf_counter(), time.process_time()
    side.wait(contest.call())
    return {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu}

  for contest in (product, *ready.values()):
    timed(contest)
  print(json.dumps({name: contest.facts for name, contest in ready.items()}), flush=True)
  for line in sys.stdin:
    rate = 2 * rig.matmul**3 / min(timed(product)['wall'] for _ in range(3))
    print(json.dumps({**timed(ready[line.strip()]), 'rate': rate}), flush=True)


def meet(rows: Sequence[Row], rounds: int, threads: int, *, small: bool) -> dict[str, Any]:
  """Every step of a contest: of all of ours that meet one peer, and of that peer.

  Returns:
    `facts` by our contests, and `rounds`, each with the figures of a step by `ours/CONTEST` and
    `peers/CONTEST`.
  """
  peer = rows[0].peers
  module = 'bench_by_hand' if peer == 'by_hand' else 'bench_torch'
  ours = Contestant('bench_ours', [row.ours for row in rows], threads, small=small)
  other = Contestant(module, [peer], threads, small=small)
  turns = []
  for _ in range(rounds):
    turn = {f'ours/{row.ours}': ours.ask(row.ours) for row in rows}
    turns.append({**turn, f'peers/{peer}': other.ask(peer)})
  ours.close()
  other.close()
  return {'facts': ours.facts, 'rounds': turns}


class Result(NamedTuple):
  """What a row came to; times and rates are the best of all rounds, CPU seconds those of that step.

  `ratio` is ours over the peer's, `equal` what it would be at equal rates of products, and a share
  is of the side's own roofline.
  """

  ours: dict[str, float]
  peers: dict[str, float]
  ratio: float
  equal: float
  share: float | None
  peers_share: float | None
  temporaries: float | None  # MB, of our program.


def result(row: Row, met: dict[str, Any], rig: Rig) -> Result:
  """The figures of a row."""

  def best(name: str) -> dict[str, float]:
    steps = [turn[name] for turn in met['rounds']]
    return {**min(steps, key=lambda step: step['wall']), 'rate': max(s['rate'] for s in steps)}

  ours, peers = best(f'ours/{row.ours}'), best(f'peers/{row.peers}')
  ratio = ours['wall'] / peers['wall']
  share = lambda name, side: (
    None if (work := needed(name, rig)) is None else work / side['rate'] / side['wall']
  )
  return Result(
    ours,
    peers,
    ratio,
    ratio * ours['rate'] / peers['rate'],
    share(row.ours, ours),
    share(row.peers, peers),
    met['facts'][row.ours].get('temporaries MB'),
  )


TITLES = (
  'contest', 'ours ms', 'CPU ms', 'peer ms', 'CPU ms', 'ratio', 'at equal rates', 'goal',
  'GFLOP/s ours : peer', 'roofline ours : peer', 'goal', 'temporaries MB',
)  # fmt: skip


def cells(row: Row, found: Result) -> tuple[str, ...]:
  """A row of the table."""
  shown = lambda value, form: '' if value is None else format(value, form)
  ms = lambda side: (f'{1e3 * side["wall"]:.1f}', f'{1e3 * side["cpu"]:.0f}')
  shares = None not in {found.share, found.peers_share}
  return (
    row.title,
    *ms(found.ours),
    *ms(found.peers),
    f'{found.ratio:.3g}',
    f'{found.equal:.3g}',
    shown(row.goal, 'g'),
    f'{found.ours["rate"] / 1e9:.0f} : {found.peers["rate"] / 1e9:.0f}',
    f'{found.share:.2f} : {found.peers_share:.2f}' if shares else '',
    shown(row.share, '.2f'),
    shown(found.temporaries, '.0f')
    + (f' (goal {TEMPORARIES[row.ours]:.0f})' if row.ours in TEMPORARIES else ''),
  )


def page(results: Sequence[tuple[Row, Result]], here: dict[str, Any], threads: int) -> str:
  """The table in Markdown, below the environment."""
  versions = ', '.join(f'{name} {number}' for name, number in here['versions'].items() if number)
  lines = [
    '# Steps against those of peers: a run',
    '',
    f'`python experiments/bench_peers.py`, {threads} threads on {here["processor"]}, '
    f'Python {here["python"]}, {versions}.',
    '',
    f'| {" | ".join(TITLES)} |',
    f'| --- |{" ---: |" * (len(TITLES) - 1)}',
    *(f'| {" | ".join(cells(row, found))} |' for row, found in results),
  ]
  return '\n'.join(lines) + '\n'


def main(
  contests: Annotated[Sequence[str], tyro.conf.Positional] = CONTESTS,
  rounds: int = 5,
  threads: int = 2,
  out: pathlib.Path = OUT,
  tiny: bool = False,
) -> None:
  """Prints and writes the table.

  Args:
    contests: some of them, by the name of the peer's.
    rounds: steps of each contestant; the best counts.
    threads: of each contestant, and cores that it may run on.
    out: directory of the table and of all rounds.
    tiny: small sizes, to see that everything runs.
  """
  if unknown := set(contests) - set(ALL):
    raise SystemExit(f'no such contest: {sorted(unknown)}; choose among {list(ALL)}')
  found = environment()
  versions = {**found['versions'], **{name: version(name) for name in PEERS}}
  here = {**found, 'versions': versions, 'threads': threads}
  met, results = {}, []
  out.mkdir(parents=True, exist_ok=True)
  for contest in contests:
    rows = [row for row in (*ROWS, *MORE) if row.peers == contest]
    met[contest] = meet(rows, min(rounds, FEW_ROUNDS.get(contest, rounds)), threads, small=tiny)
    results += [(row, result(row, met[contest], rig_of(small=tiny))) for row in rows]
    # After each, so that a run that is cut off leaves what it has.
    written = json.dumps({'environment': here, 'contests': met}, indent=1)
    (out / 'rounds.json').write_text(written + '\n')
    (out / 'table.md').write_text(page(results, here, threads))
  table = Table(box=None)
  for title in TITLES:
    table.add_column(title, justify='left' if title == 'contest' else 'right')
  for row, found in results:
    table.add_row(*cells(row, found))
  Console(width=200).print(table)


if __name__ == '__main__':
  if sys.argv[1:2] == ['contestant']:
    module, contest, size = sys.argv[2:5]
    contestant(module, contest, size, int(sys.argv[5]))
  else:
    tyro.cli(main)
