"""Whether a task costs as much after three hundred tasks as after three.

    python experiments/long_sequences.py --data FOLDER --out OUT [--tasks 100 300] [--only NAME ...]

FOLDER has train.npz and test.npz of small grey images, such as Omniglot's characters. Each class is
taken in four rotations, so that 242 characters make 968 classes, three of which are new in each
task. Every method runs on the model of 16 x 16 pixels that comes along, in a process of its own.
What has ended is read, so the command may be stopped and given again. OUT then holds a file for
each run and

    OUT/long_sequences.md

with CPU seconds for a task (its training, its other passes, and one evaluation of a test image of
each class seen), in the first and the last fifth of the tasks; what is compiled after the second
task; and how much the memory of the process grew in the last four fifths.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pecft_jax.catalog import choose
from pecft_jax.files import read_json, write_json
from pecft_jax.text import size

PER_TASK = 3
# Methods, with wrappers in front, and options where the default is too small or too large here.
CASES: Mapping[str, tuple[str, ...]] = {
  'masked_finetune': (),
  'ewc masked_finetune': (),
  'si masked_finetune': (),
  'er finetune': (),
  'agem finetune': (),
  'lwf masked_finetune': (),
  'simplecil': (),
  'slda': (),
  'fecam': (),
  'flycl': (),
  'ranpac': ('ranpac.projection=1000',),
  'l2p': ('l2p.pool=10', 'l2p.length=2'),
  'coda_prompt': ('coda_prompt.pool=300',),
  'sprompts': (),
  'ease': ('adaptformer.width=4',),
  'lae': (),
  'olora': ('lora.rank=2',),
  'inflora': (),
  'sdlora': (),
  'slao': (),
  'merged': (),
}


def rotated(path: pathlib.Path, per_class: int | None = None) -> Any:
  """The images of a file as four classes each, one for each quarter of a turn."""
  from pecft_jax import data

  plain = data.resize(data.npz(path), 16)
  if per_class is not None:
    plain = data.first_per_class(plain, per_class)
  images = plain.inputs[np.arange(len(plain.labels))]
  turned = np.concatenate([np.rot90(images, k, (1, 2)) for k in range(4)])
  names = [f'{name} {90 * k}' for k in range(4) for name in plain.class_names]
  labels = np.concatenate([plain.labels + k * len(plain.class_names) for k in range(4)])
  return data.arrays('rotated', turned, labels, names)


def measured(case: str, tasks: int, folder: pathlib.Path) -> dict[str, Any]:
  """Runs a method on a sequence; CPU seconds and memory after each task."""
  import jax
  from rich.console import Console

  from pecft_jax import data
  from pecft_jax.backbones import pretrained
  from pecft_jax.train import Experiment, RunOptions, Training, adam, run

  classes = list(range(PER_TASK * tasks))
  train, test = rotated(folder / 'train.npz'), rotated(folder / 'test.npz', 1)
  if (there := len(train.class_names)) < len(classes):
    raise SystemExit(f'{tasks} tasks need {len(classes)} classes, {folder} has {there}')
  train, test = (data.only_classes(each, classes) for each in (train, test))
  scenario = data.class_incremental(train, test, tasks=tasks)
  model = pretrained('vit_glyphs16')
  *wrap, method = case.split()
  choice = choose(method, wrap=','.join(wrap), set=CASES[case])
  training = Training(adam(1e-3, clip=1.0), epochs=1, batch_size=15, log_every=10**6)
  seconds, memory, compiled, count = [], [], [], [0]

  def compiles(event: str, duration_secs: float, **details: Any) -> None:
    del duration_secs, details
    count[0] += 'backend_compile' in event

  def note(row: Mapping[str, Any]) -> None:
    if row['kind'] == 'eval':
      spent = os.times()
      seconds.append(spent.user + spent.system)
      memory.append(resident())
      compiled.append(count[0])

  jax.monitoring.register_event_duration_secs_listener(compiles)
  experiment = Experiment(
    model, scenario, choice.build(model.backbone, scenario.capacity), training
  )
  found = run(experiment, None, RunOptions(console=Console(quiet=True), writers=(note,)))
  return {
    'case': case,
    'tasks': tasks,
    'seconds': np.diff(seconds).round(4).tolist(),  # Of the second task and the others.
    'resident_bytes': memory,
    'compiled': compiled,
    'accuracy': found['metrics']['average_accuracy'],
    'carried_bytes': found['efficiency']['carried_state_bytes'],
    'passes': found['efficiency']['forward_passes_per_prediction'],
  }


def resident() -> int:
  """Bytes of memory that this process holds; 0 where the system does not say."""
  try:
    pages = pathlib.Path('/proc/self/statm').read_text(encoding='ascii').split()[1]
  except OSError:
    return 0
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def line_of(found: Mapping[str, Any]) -> str:
  """A row of the table."""
  seconds, fifth = found['seconds'], max(1, found['tasks'] // 5)
  # Medians: other programs on the machine disturb some tasks.
  early, late = (float(np.median(part)) for part in (seconds[1:fifth], seconds[-fifth:]))
  grown = found['resident_bytes'][-1] - found['resident_bytes'][fifth]
  cells = [
    found['case'],
    str(found['tasks']),
    f'{early:.3f}',
    f'{late:.3f}',
    f'{late / early:.2f}',
    str(found['compiled'][-1] - found['compiled'][1]),
    size(grown) if grown > 0 else '0',
    size(found['carried_bytes']),
    f'{found["passes"]:g}',
    f'{100 * found["accuracy"]:.1f}',
  ]
  return f'| {" | ".join(cells)} |'


def write_table(out: pathlib.Path) -> None:
  """Writes the table of all runs that have ended."""
  titles = (
    'Method', 'Tasks', 'Early (s)', 'Late (s)', 'Late / early', 'Compiled late', 'Memory grew',
    'Carried', 'Passes', 'Accuracy (%)',
  )  # fmt: skip
  lines = ['# Long sequences', '', f'| {" | ".join(titles)} |', f'|{" --- |" * len(titles)}']
  for case in CASES:
    for path in sorted(out.glob(f'{case.replace(" ", "_")}-*.json'), key=lambda p: len(p.name)):
      lines.append(line_of(read_json(path)))
  (out / 'long_sequences.md').write_text('\n'.join([*lines, '']), encoding='utf-8')


def main(arguments: Sequence[str] | None = None) -> int:
  """Measures what is asked for, and writes the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True, help='folder of the two files')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--tasks', type=int, nargs='+', default=[100, 300])
  parser.add_argument('--only', nargs='+', default=[], help='names, such as "ewc masked_finetune"')
  parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
  flags = parser.parse_args(arguments)
  if unknown := [name for name in flags.only if name not in CASES]:
    raise SystemExit(f'no case is named {unknown[0]!r}; there are {", ".join(CASES)}')
  flags.out.mkdir(parents=True, exist_ok=True)
  failed = []
  for tasks in flags.tasks:
    for case in flags.only or CASES:
      path = flags.out / f'{case.replace(" ", "_")}-{tasks}.json'
      if flags.one:
        write_json(path, measured(case, tasks, flags.data))
      elif not path.exists():
        words = ['--data', flags.data, '--out', flags.out, '--tasks', str(tasks), '--only', case]
        done = subprocess.run([sys.executable, __file__, *words, '--one'], check=False)
        failed += [case] if done.returncode else []
        print(json.dumps({'case': case, 'tasks': tasks, 'failed': bool(done.returncode)}))
  if not flags.one:
    write_table(flags.out)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
