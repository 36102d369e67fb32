"""Every method on one benchmark: tuned alike, then run on several class orders and seeds.

    python experiments/table.py --data-dir DIR --weights FILE --out OUT [--size small] [--jobs 2]
    python experiments/table.py --benchmark FILE --out OUT -- FLAGS

Whatever has ended is read and what was interrupted goes on, so the command may be stopped and given
again, with more methods or more seeds. The benchmark is split_cifar100, or any other that `pecft
run` takes and that has the flags --method, --wrap, --set, --learning-rate and --class-order; FLAGS
are its own. OUT then holds a work directory for each method, order and seed, the trials of its
tuning, and

    OUT/table.md     the tables of each order, with the choices that were made
    OUT/table.html   the page of `pecft report` over all runs of the first order
    OUT/results.jsonl  the results.json of each run, with the names of its row and order

The protocol: the rate, and the strength of methods that have one, are chosen by
`pecft_jax.train.tuned` among four choices, with seed 0 and the first order, on the first three
tasks' training images, a fifth of which is held out; no test image and no later task is read.
"""

import argparse
import concurrent.futures
import dataclasses
import inspect
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pecft_jax.about import about_of
from pecft_jax.catalog import METHODS, WRAPPERS
from pecft_jax.commands import files
from pecft_jax.files import json_line, read_json

# Of BENCHMARK; other benchmarks are as large as their flags say.
SIZES: Mapping[str, tuple[str, ...]] = {
  'small': (
    '--train-per-class', '50', '--test-per-class', '20', '--epochs', '3', '--batch-size', '32',
  ),
  'full': ('--epochs', '5', '--batch-size', '128'),
}  # fmt: skip
BENCHMARK = 'split_cifar100'
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FEWER_RATES = (1e-3, 3e-3)  # Beside two strengths, so that every method has four trials.
PROMPT_RATES = (3e-3, 1e-2)  # The same for prompts: of four rates, they took the highest.
# What says how much a method holds on to the past, by its flag, with the values that are tried.
STRENGTHS: Mapping[str, tuple[str, tuple[float, float]]] = {
  'cada': ('cada.orthogonality', (0.1, 1.0)),
  'mos': ('mos.merged', (0.0, 0.1)),
  'tuna': ('tuna.orthogonality', (0.0, 1e-3)),
  'clora': ('clora.strength', (0.5, 50.0)),
  'routed_lora': ('routed_lora.strength', (0.01, 1.0)),
  'olora': ('olora.orthogonality', (0.5, 5.0)),
  'ewclora': ('ewclora.strength', (1e4, 1e6)),
  'cllora': ('cllora.distillation', (1.0, 5.0)),
  'online_lora': ('online_lora.strength', (20.0, 2000.0)),
  'l2p': ('l2p.pull', (0.1, 1.0)),
  'cprompt': ('cprompt.consistency', (0.1, 1.0)),
  'hide_prompt': ('hide_prompt.contrast', (0.01, 0.1)),
  'hide_lora': ('hide_lora.contrast', (0.001, 0.01)),
  'ewc': ('ewc.strength', (10.0, 1000.0)),
  'ovor': ('ovor.strength', (0.01, 0.1)),
  'loda': ('loda.balance', (1.0, 3.0)),
  'lorasub': ('lorasub.strength', (0.05, 0.5)),
  'splitlora': ('splitlora.balance', (5.0, 20.0)),
  'slao': ('slao.power', (0.5, 1.0)),
  'si': ('si.strength', (0.1, 10.0)),
  'merged': ('merged.scale', (0.5, 1.0)),
  'lwf': ('lwf.strength', (0.1, 1.0)),
  'er': ('er.strength', (0.5, 1.0)),
  'derpp': ('derpp.beta', (0.5, 1.0)),
}
# Of methods that train nothing by default, the strengths that are tried.
UNTRAINED: Mapping[str, tuple[str, tuple[float, ...]]] = {
  'fecam': ('fecam.diagonal', (1.0, 3.0, 10.0, 100.0)),
  'flycl': ('flycl.kept', (0.01, 0.03, 0.1, 0.3)),
  'slda': ('slda.shrinkage', (1e-4, 1e-3, 1e-2, 1e-1)),
}
# Of methods that are defined by a slow rate of the backbone and a usual one of the head.
SLOW = {'slca': {'rate': (3e-5, 1e-4), 'head_rate': (3e-3, 1e-2)}}
# Orders by the similarity of neighbouring tasks, of `pecft_jax.data.similarity_orders`.
SIMILAR = ('hardest', 'median', 'easiest')
# Directory of runs of several orders as one program.
TOGETHER = 'side_by_side'
# Not compared here: texts are another benchmark, and training on each task alone is a reference.
LEFT_OUT = ('language_model',)
# Joint training, a bound, starts from scratch on all classes: it is tried until more epochs do not
# help, with more trials than a method.
JOINT_EPOCHS = (10, 20, 40)


class Case(NamedTuple):
  """One row of the table.

  Attributes:
    name: of its directory.
    method: name of the method.
    wrap: a wrapper around it, or ''.
    choices: settings that are tried: `rate`, `head_rate` where the head has one of its own, and
      options of the method by name.
  """

  name: str
  method: str
  wrap: str
  choices: tuple[dict[str, float], ...]


def cases() -> tuple[Case, ...]:
  """All methods of the library, and its wrappers around sequential fine-tuning.

  What replays examples learns from them how tasks differ: it trains among all classes. Other
  wrappers stand around fine-tuning among each task's own classes, the better bound.
  """
  methods = [Case(name, name, '', choices(name)) for name in METHODS if name not in LEFT_OUT]
  replays = lambda factory: 'stored examples' in about_of(factory).needs
  around = lambda factory: 'finetune' if replays(factory) else 'masked_finetune'
  wrapped = [Case(name, around(each), name, choices(name)) for name, each in WRAPPERS.items()]
  return (*methods, *wrapped)


def choices(name: str) -> tuple[dict[str, float], ...]:
  """The settings that are tried for a method or wrapper: four, or one where nothing is trained."""
  from pecft_jax.train import combinations

  if name == 'simplecil':
    return ({},)
  if name in SLOW:
    return tuple(combinations(**SLOW[name]))
  if name in UNTRAINED:
    flag, strengths = UNTRAINED[name]
    return tuple(combinations(**{flag: strengths}))
  if name == 'joint':
    return tuple(combinations(rate=FEWER_RATES, **{'joint.epochs': JOINT_EPOCHS}))
  if name not in STRENGTHS:
    return tuple(combinations(rate=RATES))
  flag, strengths = STRENGTHS[name]
  prompts = name in METHODS and about_of(METHODS[name]).family == 'prompts'
  return tuple(combinations(rate=PROMPT_RATES if prompts else FEWER_RATES, **{flag: strengths}))


@dataclasses.dataclass(frozen=True)
class NoFlags:
  """The flags of a benchmark have no others beside them."""


def flags_of(flags: argparse.Namespace) -> list[str]:
  """Those of the benchmark that are the same for all cases."""
  if flags.benchmark != BENCHMARK:
    return flags.rest
  given = [('--data-dir', flags.data_dir), ('--weights', flags.weights)]
  named = [word for name, value in given if value for word in (name, str(value))]
  return [*SIZES[flags.size], *named, *flags.rest]


def made(case: Case, flags: argparse.Namespace, order: str, choice: Mapping[str, Any]) -> Any:
  """The experiment of a case with a choice of settings."""
  function = files.load_experiment(files.find_experiment(flags.benchmark))
  args = [*flags_of(flags), '--method', case.method, '--class-order', order]
  args += ['--wrap', case.wrap] if case.wrap else []
  # The bounds have rows of their own.
  args += ['--no-bounds'] if 'bounds' in inspect.signature(function).parameters else []
  for name, value in choice.items():
    rates = {'rate': ('--learning-rate', f'{value}'), 'head_rate': ('--rates', f'^head={value}')}
    args += rates.get(name, ('--set', f'{name}={value}'))
  values, _ = files.parse_flags(function, args, 'table.py', NoFlags)
  return files.made(function, values)


def order_of(name: str, flags: argparse.Namespace) -> str:
  """A class order: `hardest`, `median` and `easiest` are found from frozen training features."""
  if name not in SIMILAR:
    return name
  from pecft_jax import data
  from pecft_jax.train import class_features

  plain = made(Case('simplecil', 'simplecil', '', ({},)), flags, 'natural', {})
  tasks = plain.scenario.tasks
  train = data.joined([task.train for task in tasks])
  images = train.inputs[train.rows]
  train = data.arrays('training', images, train.labels, plain.scenario.class_names)
  found = data.similarity_orders(class_features(plain.model, train), tasks=len(tasks))
  return ','.join(str(label) for label in getattr(found, name))


def run_case(case: Case, flags: argparse.Namespace) -> None:
  """Tunes a case, and runs it with the choice on all orders and seeds."""
  from rich.console import Console

  from pecft_jax.devices.compile_cache import use_compile_cache
  from pecft_jax.train import RunOptions, run, run_orders, tuned

  use_compile_cache()
  options = RunOptions(console=Console(quiet=True))
  place = flags.out / case.name
  first = order_of(flags.orders[0], flags)
  best = tuned(
    lambda choice: made(case, flags, first, choice), case.choices, place / 'tuning', options
  )
  # One seed after the other, each in a directory of its own, so that more may follow later.
  for seed in range(flags.seeds):
    chosen = {
      order.replace(':', '_'): made(case, flags, order_of(order, flags), best.choice)
      for order in flags.orders
    }
    if flags.side_by_side and len(chosen) > 1:
      one = next(iter(chosen.values())).replace(seed=seed)
      all_orders = {name: one.replace(scenario=each.scenario) for name, each in chosen.items()}
      run_orders(all_orders, place / TOGETHER / f'seed_{seed}', options)
      continue
    for name, experiment in chosen.items():
      run(experiment.replace(seed=seed), place / name / f'seed_{seed}', options)


def all_cases(chosen: Sequence[Case], flags: argparse.Namespace) -> list[str]:
  """Runs cases as processes of their own, some at a time; returns those that failed."""

  def one(case: Case) -> bool:
    start = time.monotonic()
    threads = max(1, (os.cpu_count() or 1) // flags.jobs)
    done = subprocess.run(
      [sys.executable, __file__, '--case', case.name, *sys.argv[1:]],
      env={**os.environ, 'NPROC': str(threads), 'OMP_NUM_THREADS': str(threads)},
      capture_output=True,
      check=False,
      text=True,
    )
    last = (done.stderr.strip().splitlines() or [''])[-1]
    said = 'done' if done.returncode == 0 else f'FAILED: {last}'
    print(f'{case.name}: {said} ({time.monotonic() - start:.0f} s)', flush=True)
    return done.returncode == 0

  with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
    ended = list(pool.map(one, chosen))
  return [case.name for case, good in zip(chosen, ended, strict=True) if not good]


def write_tables(flags: argparse.Namespace) -> None:
  """Writes table.md, table.html and results.jsonl from all runs that have ended."""
  from pecft_jax.report import comparison_markdown, write_comparison

  lines, rows = [f'# {pathlib.Path(flags.benchmark).stem}', ''], []
  for order in flags.orders:
    by_case = {case.name: ended(flags.out / case.name, order) for case in cases()}
    found = [each for runs in by_case.values() for each in runs]
    rows += [
      json_line({'row': name, 'order': order, **read_json(each / 'results.json')})
      for name, runs in by_case.items()
      for each in runs
    ]
    if not found:
      continue
    if order == flags.orders[0]:
      write_comparison(found, flags.out / 'table.html')
    lines += [f'## Class order: {order}', '', comparison_markdown(found), '']
  lines += ['## Choices', '', *choice_table(flags), '']
  (flags.out / 'table.md').write_text('\n'.join(lines), encoding='utf-8')
  (flags.out / 'results.jsonl').write_text(''.join(rows), encoding='utf-8')


def ended(place: pathlib.Path, order: str) -> list[pathlib.Path]:
  """The directories of a case's runs on an order that have ended, by seed."""
  name = order.replace(':', '_')
  runs = [*(place / name).glob('seed_*'), *(place / TOGETHER).glob(f'seed_*/{name}')]
  results = [each / 'results.json' for each in sorted(runs)]
  return [path.parent for path in results if path.exists() and read_json(path)['status'] == 'done']


def choice_table(flags: argparse.Namespace) -> list[str]:
  """A Markdown table of what was tried for each case, and chosen."""
  lines = ['| Case | Tried: average accuracy on held-out images (%) | Chosen | At an edge |']
  lines += ['| --- | --- | --- | --- |']
  said = lambda choice: ', '.join(f'{name} {v:g}' for name, v in choice.items()) or 'nothing'
  for case in cases():
    path = flags.out / case.name / 'tuning' / 'tuned.json'
    if path.exists():
      found = read_json(path)
      score = lambda value: 'diverged' if value is None else f'{100 * value:.1f}'
      tried = '; '.join(f'{said(t["choice"])}: {score(t["score"])}' for t in found['trials'])
      edge = ', '.join(found['at_edge'])
      lines.append(f'| {case.name} | {tried} | {said(found["choice"])} | {edge} |')
  return lines


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The flags of the command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--benchmark', default=BENCHMARK, help='name or file, as of `pecft run`')
  parser.add_argument('--data-dir', type=pathlib.Path, help='folder of cifar100_*.npz')
  parser.add_argument('--weights', type=pathlib.Path, help='weights of vit_32_p8_tiny_imagenet')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--size', choices=list(SIZES), default='small')
  parser.add_argument('--only', nargs='+', default=[], help='names of cases')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--orders',
    nargs='+',
    default=['natural', 'seed:1993'],
    help='class orders: natural, seed:N, hardest, median, easiest',
  )
  parser.add_argument(
    '--side-by-side', action='store_true', help='all orders of a seed as one compiled program'
  )
  parser.add_argument('--jobs', type=int, default=2, help='cases at a time')
  parser.add_argument(
    '--read', action='store_true', help='write the tables of what has ended, run nothing'
  )
  parser.add_argument('--list', action='store_true', help='print the cases, run nothing')
  parser.add_argument('--case', help=argparse.SUPPRESS)
  given = list(sys.argv[1:] if arguments is None else arguments)
  behind = given.index('--') if '--' in given else len(given)
  flags = parser.parse_args(given[:behind])
  flags.rest = given[behind + 1 :]
  return flags


def main() -> int:
  """Runs what is asked for, and writes the tables."""
  flags = parsed()
  known = {case.name: case for case in cases()}
  if unknown := [name for name in [*flags.only, *filter(None, [flags.case])] if name not in known]:
    raise SystemExit(f'no case is named {unknown[0]!r}; there are {", ".join(known)}')
  if flags.list:
    for case in known.values():
      about = about_of((WRAPPERS if case.wrap else METHODS)[case.name])
      print(f'{case.name:20} {len(case.choices)} trials  {about.summary}')
    return 0
  if flags.case:
    run_case(known[flags.case], flags)
    return 0
  flags.out.mkdir(parents=True, exist_ok=True)
  chosen = [case for name, case in known.items() if not flags.only or name in flags.only]
  failed = [] if flags.read else all_cases(chosen, flags)
  write_tables(flags)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
