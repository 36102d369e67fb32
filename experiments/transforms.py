"""Every transform on one task: what it costs, what it learns, and what the model forgets.

    python experiments/transforms.py images --data-dir DIR --weights FILE --out OUT
    python experiments/transforms.py texts --backbone CARD --weights FILE --tokenizer FILE
        --train TABLE --test TABLE --general FILE --out OUT

Each is trained with a linear head on the features, with the best of four rates on a fifth of the
training data that is held out, for as many updates as all others, in a process of its own. Whatever
has ended is read, so the command may be stopped and given again. OUT/transforms.md then holds the
table.

What the model forgets: with images, the accuracy by nearest class mean on classes that were not
trained on, from the features of the adapted model; with texts, the cross-entropy of each next token
of a general text, in nats. Both stand beside those of the frozen model.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.files import read_json, write_json
from pecft_jax.peft import PEFTS
from pecft_jax.text import count, size

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FROZEN = 'linear_probe'  # The transform that changes nothing.
CLASSES = 20  # Of CIFAR-100: these are trained on, the same number behind them is not.


class World(NamedTuple):
  """A model and a task.

  Attributes:
    model: frozen, with its weights.
    train: the task's training examples.
    test: its test examples.
    base: `(transform, delta) -> number`, what the model knows beside the task.
  """

  model: Any
  train: Any
  test: Any
  base: Callable[[Any, Any], float]


def images(flags: argparse.Namespace) -> World:
  """Classes of CIFAR-100 on a vision transformer."""
  from pecft_jax import data
  from pecft_jax.backbones import pretrained

  model = pretrained(flags.backbone or 'vit_32_p8_tiny_imagenet', flags.weights)
  side = model.backbone.inputs.shape[0]

  def part(split: str, first: int, per_class: int) -> Any:
    source = data.npz(flags.data_dir / f'cifar100_{split}.npz')
    some = data.first_per_class(source, per_class)
    found = data.only_classes(some, range(first, first + CLASSES))
    return found if side == 32 else data.in_memory(data.resize(found, side))

  known = part('train', CLASSES, 20), part('test', CLASSES, 20)
  base = lambda peft, delta: nearest_mean(model, *known, peft, delta)
  return World(model, part('train', 0, 50), part('test', 0, 50), base)


def texts(flags: argparse.Namespace) -> World:
  """A table of texts with labels on a decoder."""
  from pecft_jax import data
  from pecft_jax.backbones import pretrained

  model = pretrained(flags.backbone, flags.weights)
  inputs: Any = model.backbone.inputs
  settings: Any = {
    'length': inputs.shape[0] if flags.length is None else flags.length,
    'pad': inputs.pad,
    'too_long': 'cut',
  }
  train = data.text_table(flags.train, flags.tokenizer, **settings)
  test = data.text_table(flags.test, flags.tokenizer, class_names=train.class_names, **settings)
  general = data.text_lines(flags.general, flags.tokenizer, **settings)
  base = lambda peft, delta: next_token_loss(model, general, peft, delta)
  return World(model, train, test, base)


def features(model: Any, source: Any, peft: Any, delta: Any) -> np.ndarray:
  """The pooled features [N, D] of a model with a delta."""
  import jax

  from pecft_jax.continual.core import normalised

  apply = jax.jit(
    lambda params, delta, x: (
      model.backbone.apply(
        params, normalised(model.backbone.inputs, x), delta, peft=peft, rows=1
      ).pooled
    )
  )
  rows = np.arange(len(source.labels))
  parts = [source.inputs[rows[i : i + 50]] for i in range(0, len(rows), 50)]
  return np.concatenate([np.asarray(apply(model.params, delta, x), np.float64) for x in parts])


def nearest_mean(model: Any, train: Any, test: Any, peft: Any, delta: Any) -> float:
  """The accuracy in percent by the largest cosine to a class mean."""
  unit = lambda h: h / np.linalg.norm(h, axis=-1, keepdims=True)
  known = features(model, train, peft, delta)
  means = np.stack([known[train.labels == c].mean(0) for c in range(len(train.class_names))])
  found = (unit(features(model, test, peft, delta)) @ unit(means).T).argmax(-1)
  return 100 * float((found == test.labels).mean())


def next_token_loss(model: Any, source: Any, peft: Any, delta: Any) -> float:
  """The mean cross-entropy of the next token, over all that are no padding."""
  import jax
  import jax.numpy as jnp

  inputs: Any = model.backbone.inputs  # `TokenIds`
  pad = inputs.pad

  @jax.jit
  def sums(params: Any, delta: Any, x: Any) -> tuple[Any, Any]:
    out = model.backbone.apply(params, x, delta, peft=peft, rows=None)
    own = params if peft.replace is None else peft.replace(delta, params)
    table = own['embed']['table'].T if model.head is None else model.head['kernel']
    logits = (out.tokens.astype(jnp.float32) @ table.astype(jnp.float32))[:, :-1]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), x[:, 1:, None], -1)[..., 0]
    there = x[:, 1:] != pad
    return jnp.where(there, losses, 0).sum(), there.sum()

  rows = np.arange(len(source.inputs))
  parts = [
    sums(model.params, delta, source.inputs[rows[i : i + 4]]) for i in range(0, len(rows), 4)
  ]
  return float(sum(loss for loss, _ in parts) / sum(number for _, number in parts))


def run_case(name: str, world: World, flags: argparse.Namespace) -> None:
  """Tunes and trains a transform, and writes what was measured."""
  import jax
  from rich.console import Console

  from pecft_jax import data
  from pecft_jax.continual import finetune
  from pecft_jax.devices.compile_cache import use_compile_cache
  from pecft_jax.learners import load_run
  from pecft_jax.train import Experiment, RunOptions, Training, adam, combinations, run, tuned

  use_compile_cache()
  model, peft = world.model, PEFTS[name]()
  scenario = data.class_incremental(world.train, world.test, tasks=1)

  def made(choice: Any) -> Experiment:
    method = finetune(model.backbone, scenario.capacity, peft=peft)
    training = Training(
      adam(choice['rate'], clip=1.0), epochs=flags.epochs, batch_size=flags.batch_size
    )
    return Experiment(model, scenario, method, training)

  options, place = RunOptions(console=Console(quiet=True)), flags.out / name
  best = tuned(made, combinations(rate=RATES), place / 'tuning', options, tasks=1)
  found = run(made(best.choice), place / 'run', options)
  learner = load_run(place / 'run', model=model, method=made(best.choice).method)
  adapted, start = learner.adapted, peft.init(jax.random.key(0), model.backbone.sites, model.params)
  write_json(
    place / 'measured.json',
    {
      'rate': best.choice['rate'],
      'at_edge': bool(best.at_edge),
      'trained': sum(leaf.size for leaf in jax.tree.leaves(start)),
      'accuracy': found['metrics']['average_accuracy'],
      'images_per_second': found['efficiency']['train_images_per_second'],
      'peak_bytes': found['efficiency']['peak_memory_bytes'],
      'base': world.base(adapted.peft, adapted.delta),
    },
  )


TITLES = {'images': 'Other classes (%)', 'texts': 'General text (nats)'}  # Of `World.base`.


def write_table(flags: argparse.Namespace) -> None:
  """Writes the table of all transforms that have ended."""
  done = {name: flags.out / name / 'measured.json' for name in (FROZEN, *sorted(PEFTS))}
  found = {name: read_json(path) for name, path in done.items() if path.exists()}
  fastest = max((each['images_per_second'] for each in found.values()), default=1.0)
  titles = (
    'Transform', 'Trained', 'Accuracy (%)', TITLES[flags.task], 'Step', 'Peak memory', 'Rate',
  )  # fmt: skip
  lines = ['# Transforms', '', f'| {" | ".join(titles)} |', f'|{" --- |" * len(titles)}']
  for name, each in sorted(found.items(), key=lambda item: -item[1]['accuracy']):
    cells = (
      f'`{name}`',
      count(each['trained']),
      f'{100 * each["accuracy"]:.1f}',
      f'{each["base"]:.2f}',
      f'{fastest / each["images_per_second"]:.2f}',
      size(each['peak_bytes']),
      f'{each["rate"]:g}{" (edge)" if each["at_edge"] else ""}',
    )
    lines.append(f'| {" | ".join(cells)} |')
  lines += [
    '',
    f'Step: time of an example over that of the fastest. `{FROZEN}` is the frozen model.',
  ]
  (flags.out / 'transforms.md').write_text('\n'.join([*lines, '']), encoding='utf-8')


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """The flags of the command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('task', choices=('images', 'texts'))
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--backbone', help='name or path of a card')
  parser.add_argument('--weights', type=pathlib.Path)
  parser.add_argument('--data-dir', type=pathlib.Path, help='folder of cifar100_*.npz')
  for name in ('tokenizer', 'train', 'test', 'general'):
    parser.add_argument(f'--{name}', type=pathlib.Path)
  parser.add_argument('--length', type=int, help='tokens of a text; the most by default')
  parser.add_argument('--epochs', type=int, default=3)
  parser.add_argument('--batch-size', type=int, default=32)
  parser.add_argument('--only', nargs='+', default=[], help='names of transforms')
  parser.add_argument('--jobs', type=int, default=1, help='transforms at a time')
  parser.add_argument('--case', help=argparse.SUPPRESS)
  flags = parser.parse_args(arguments)
  if unknown := [name for name in flags.only if name not in PEFTS]:
    raise SystemExit(f'no transform is named {unknown[0]!r}; there are {", ".join(PEFTS)}')
  return flags


def main() -> int:
  """Runs what is asked for, and writes the table."""
  flags = parsed()
  world = {'images': images, 'texts': texts}[flags.task]
  if flags.case:
    run_case(flags.case, world(flags), flags)
    return 0
  flags.out.mkdir(parents=True, exist_ok=True)

  def one(name: str) -> bool:
    if (flags.out / name / 'measured.json').exists():
      return True
    start = time.monotonic()
    threads = str(max(1, (os.cpu_count() or 1) // flags.jobs))
    done = subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], '--case', name],
      env={**os.environ, 'NPROC': threads, 'OMP_NUM_THREADS': threads},
      capture_output=True,
      check=False,
      text=True,
    )
    last = (done.stderr.strip().splitlines() or [''])[-1]
    said = 'done' if done.returncode == 0 else f'FAILED: {last}'
    print(f'{name}: {said} ({time.monotonic() - start:.0f} s)', flush=True)
    return done.returncode == 0

  with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
    good = list(pool.map(one, flags.only or (FROZEN, *(name for name in PEFTS if name != FROZEN))))
  write_table(flags)
  return 0 if all(good) else 1


if __name__ == '__main__':
  sys.exit(main())
