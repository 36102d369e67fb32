"""The library's steps against those of its peers, in turn, on this machine.

    python experiments/bench_peers.py [CONTEST ...] [--rounds N] [--threads N]

Needs torch, timm, transformers and peft: pip install -e '.[parity]'. Each contestant is a
process of its own, both keep their heap, and they step in turn; what counts is the best step of
each. Weights are random: cost does not depend on them. A ratio of two frameworks carries their
matrix products in it, therefore both rates stand beside it, measured in the same rounds, and what
the ratio would be if they were equal.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
  """A ratio to be found: what is timed on either side, and how low it should be."""

  title: str
  contest: str
  ours: str
  peers: str
  goal: float


ROWS = (
  Row('frozen features, ViT-B/16 b8 / timm', 'features', 'step', 'step', 0.45),
  Row('linear probe, ViT-B/16 b8 / timm', 'probe', 'step', 'step', 0.45),
  Row('linear probe on cached features / timm without', 'probe', 'cached', 'step', 0.0005),
  Row('LoRA r=8 q,v, ViT-B/16 b8 / transformers + peft', 'lora', 'step', 'step', 0.60),
  Row('L2P, ViT-B/16 b8 / plain torch', 'l2p', 'step', 'step', 0.50),
  Row('L2P with cached queries / plain torch without', 'l2p', 'cached', 'step', 0.36),
  Row('EASE adapter step, ViT-B/16 b8 / plain torch', 'ease', 'step', 'step', 0.60),
  Row('EASE prediction, 5 tasks, ViT-Ti/16 b32 / plain torch', 'subspaces', 'step', 'step', 0.50),
  Row('LoRA r=8 q,v, Llama 58M b8 s128 / transformers + peft', 'llama', 'step', 'step', 0.48),
  Row('LoRA r=8 all linears, the same', 'llama_all', 'step', 'step', 0.58),
  Row('RanPAC choice and solve, M = 10,000 / torch', 'ranpac', 'end', 'end', 0.06),
  Row('RanPAC from features to weights / torch', 'ranpac', 'whole', 'whole', 0.06),
  Row('LoRA r=8 q,v, ViT-Ti/16 b32 / JAX by hand', 'by_hand', 'step', 'step', 1.03),
)
CONTESTS = tuple(dict.fromkeys(row.contest for row in ROWS))
# A contest whose steps take minutes, not seconds.
FEW_ROUNDS = {'ranpac': 2}


class Contestant:
  """A process that steps when asked to."""

  def __init__(self, module: str, contest: str, threads: int):
    """Starts it, and waits until it is warm.

    Raises:
      SystemExit: if it cannot be started; it has said why.
    """
    command = [sys.executable, __file__, 'contestant', module, contest, str(threads)]
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'OPENBLAS_NUM_THREADS': str(threads)}
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    self.facts = self._answer()

  def _answer(self) -> dict[str, float]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(self._process.wait() or 1)
    return json.loads(line)

  def ask(self) -> dict[str, float]:
    """One step: seconds by name, and `rate`, the FLOP/s of a matrix product just before."""
    assert self._process.stdin is not None
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    return self._answer()

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()


def contestant(module: str, contest: str, threads: int) -> None:
  """The life of such a process: a line of facts, then one of seconds for each line it reads."""
  from pecft_jax.train.heap import keep_heap

  os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
  keep_heap()
  side: Any = importlib.import_module(module)
  step, facts = side.CONTESTS[contest]()
  for _ in range(1 if contest in FEW_ROUNDS else 2):
    step()
  print(json.dumps(facts), flush=True)
  for _ in sys.stdin:
    rate = side.matmul_rate()
    print(json.dumps({'rate': rate, **step()}), flush=True)


def meet(contest: str, rounds: int, threads: int) -> dict[str, dict[str, float]]:
  """The best of either side in a contest, with its facts."""
  peers = 'bench_by_hand' if contest == 'by_hand' else 'bench_torch'
  sides = {
    'ours': Contestant('bench_ours', contest, threads),
    'peers': Contestant(peers, contest, threads),
  }
  best: dict[str, dict[str, float]] = {name: dict(side.facts) for name, side in sides.items()}
  for _ in range(rounds):
    for name, side in sides.items():
      for what, value in side.ask().items():
        choose = max if what == 'rate' else min
        best[name][what] = choose(value, best[name].get(what, value))
  for side in sides.values():
    side.close()
  return best


def main(
  contests: Annotated[Sequence[str], tyro.conf.Positional] = CONTESTS,
  rounds: int = 5,
  threads: int = 4,
) -> None:
  """Prints the table.

  Args:
    contests: some of them.
    rounds: steps of each contestant; the best counts.
    threads: of each contestant, and cores that it may run on.
  """
  if unknown := set(contests) - set(CONTESTS):
    raise SystemExit(f'no such contest: {sorted(unknown)}; choose among {list(CONTESTS)}')
  table = Table(box=None)
  titles = 'ours ms', 'peer ms', 'ratio', 'at equal rates', 'goal', 'GFLOP/s ours : peer'
  for title in ('contest', *titles):
    table.add_column(title, justify='left' if title == 'contest' else 'right')
  facts = []
  for contest in contests:
    best = meet(contest, min(rounds, FEW_ROUNDS.get(contest, rounds)), threads)
    ours, peers = best['ours'], best['peers']
    for row in (row for row in ROWS if row.contest == contest):
      mine, other = ours[row.ours], peers[row.peers]
      rates = f'{ours["rate"] / 1e9:.0f} : {peers["rate"] / 1e9:.0f}'
      ratio = mine / other
      equal = ratio * ours['rate'] / peers['rate']
      times = f'{1e3 * mine:.1f}', f'{1e3 * other:.1f}'
      table.add_row(row.title, *times, f'{ratio:.3g}', f'{equal:.3g}', f'{row.goal:g}', rates)
    for what in ('GFLOP', 'temporaries MB'):
      told = [f'{name} {side[what]:.2f}' for name, side in best.items() if what in side]
      facts += [f'{contest}: {what} {", ".join(told)}'] if told else []
  console = Console(width=140)
  console.print(table, *facts, sep='\n')


if __name__ == '__main__':
  if sys.argv[1:2] == ['contestant']:
    contestant(sys.argv[2], sys.argv[3], int(sys.argv[4]))
  else:
    tyro.cli(main)
