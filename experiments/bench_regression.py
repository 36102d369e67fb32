"""What is computed, in numbers that are equal on every machine: FLOPs, temporaries, compilations.

    python experiments/bench_regression.py            # Compares with results/regression.json.
    python experiments/bench_regression.py --update   # Writes the figures there.

No times. Figures that XLA counts differ between its versions: each has a tolerance, relative to the
committed value; counts have none. A change that is meant is committed with its new figures.
"""

import argparse
import collections
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from rich.console import Console

from pecft_jax import data
from pecft_jax.backbones import random_weights
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import ease, finetune, l2p, ranpac
from pecft_jax.peft import adaptformer, linear_probe, lora
from pecft_jax.plan.cost import flops
from pecft_jax.train import (
  Experiment,
  RunOptions,
  Training,
  adam,
  compile_steps,
  one_device,
  run,
  sgd,
)
from pecft_jax.train.abstract import arguments
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Pretrained

FILE = pathlib.Path(__file__).parent / 'results' / 'regression.json'
Figures = dict[str, float]
# By the first word of a figure: how far it may be from the committed value, relative to it.
TOLERANCES = {'flops': 0.1, 'temporaries': 0.25, 'compilations': 0.0, 'passes': 0.0}

# The compiled programs: a ViT whose products are nearly all of its FLOPs.
WIDTH, DEPTH, SIDE, PATCH, BATCH, MANY = 128, 2, 32, 4, 8, 20
ROWS = (SIDE // PATCH) ** 2 + 1
# The run: two classes in each of twenty tasks.
TASKS, EXAMPLES, TESTED = 20, 4, 3


def forward_flops() -> float:
  """Those of the products of one batch's forward pass, counted on paper."""
  layer = 24 * ROWS * WIDTH**2 + 4 * ROWS**2 * WIDTH
  patches = 2 * (ROWS - 1) * 3 * PATCH**2 * WIDTH
  return BATCH * (DEPTH * layer + patches)


def programs() -> Figures:
  """FLOPs in forward passes, and temporaries in activations [B, T, D] of float32.

  Of RanPAC both are in matrices [M, M]: a whole product of a batch would be one.
  """
  model = vit(
    image_size=SIDE, patch=PATCH, width=WIDTH, depth=DEPTH, heads=4, mean=(0.5,) * 3, std=(0.5,) * 3
  )
  capacity, projection = Capacity(MANY, 2 * MANY), 4096
  activation = 4.0 * BATCH * ROWS * WIDTH
  square = float(projection) ** 2
  found: Figures = {}

  def add(name: str, method: ContinualMethod, which: str, unit: float, bytes_unit: float) -> None:
    frozen = jax.eval_shape(model.init, jax.random.key(0))
    steps = compile_steps(method, adam(1e-3), one_device(), frozen)
    given = arguments(steps, method, frozen, BATCH)
    function = getattr(steps, which)
    args = given.gather if which == 'consolidate' else getattr(given, which)
    program: Any = function.lower(*args).compile()
    size = program.memory_analysis().temp_size_in_bytes
    found[f'flops {name}'] = round(flops(function, *args, turns=MANY) / unit, 3)
    found[f'temporaries {name}'] = round(size / bytes_unit, 3)

  adapters = ease(model, capacity, peft=adaptformer(width=8))
  add('lora, step', finetune(model, capacity, peft=lora()), 'train', forward_flops(), activation)
  add('l2p, step', l2p(model, capacity), 'train', forward_flops(), activation)
  add('ease, step', adapters, 'train', forward_flops(), activation)
  add('ease, prediction', adapters, 'predict', forward_flops(), activation)
  probe = ranpac(model, capacity, peft=linear_probe(), projection=projection, sample=50)
  add('ranpac, sums', probe, 'consolidate', 2 * BATCH * square + forward_flops(), 4 * square)
  return found


def runs() -> Figures:
  """Compilations of a run of EASE over twenty tasks, and the backbone's passes, in images."""
  made = random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  passes: collections.Counter[str] = collections.Counter()
  backbone = _counted(made.backbone, passes)
  scenario = _scenario()
  method = ease(backbone, scenario.capacity, peft=adaptformer(width=2))
  training = Training(sgd(0.1), epochs=1, batch_size=2 * EXAMPLES, eval_batch_size=8)
  experiment = Experiment(Pretrained(backbone, made.params), scenario, method, training)
  results = run(experiment, None, RunOptions(console=Console(quiet=True)))
  jax.effects_barrier()
  return {
    'compilations ease, most of a function': max(results['compilations'].values()),
    'compilations ease, all': sum(results['compilations'].values()),
    'passes ease': passes['images'],
  }


def _counted(backbone: Backbone, passes: collections.Counter[str]) -> Backbone:
  """The backbone, which adds up the images that pass through it."""

  def apply(params: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    rows = inputs.shape[0]
    jax.debug.callback(lambda: passes.update(images=rows))
    return backbone.apply(params, inputs, *args, **kwargs)

  return backbone._replace(apply=apply)


def _scenario() -> Any:
  """Classes that differ in their brightness."""

  def source(count: int, seed: int) -> Any:
    labels = np.repeat(np.arange(2 * TASKS), count)
    noise = np.random.default_rng(seed).integers(0, 50, (len(labels), 8, 8, 1))
    return data.arrays('tiny', (noise + 5 * labels[:, None, None, None]).astype(np.uint8), labels)

  return data.class_incremental(source(EXAMPLES, 0), source(TESTED, 1), tasks=TASKS)


def compared(found: Figures, committed: Figures) -> list[str]:
  """Says which figures are not as committed, each in a line.

  >>> compared({'passes a': 3, 'flops a': 1.05}, {'passes a': 2, 'flops a': 1.0})
  ['passes a: committed 2, found 3']
  """
  lines = []
  for name in sorted(found.keys() | committed.keys()):
    here, there = found.get(name), committed.get(name)
    tolerance = TOLERANCES[name.split()[0]]
    if here is None or there is None or abs(here - there) > tolerance * abs(there):
      within = f' within {tolerance:.0%}' if tolerance else ''
      lines.append(f'{name}: committed {there}{within}, found {here}')
  return lines


def main() -> int:
  """Prints the figures; returns 1 where they are not as committed."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--update', action='store_true', help='write the figures to the file')
  update = parser.parse_args().update
  found = {**programs(), **runs()}
  if update:
    FILE.write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
  committed = json.loads(FILE.read_text(encoding='utf-8'))
  for name, value in found.items():
    print(f'{name:44} {value:12}   committed {committed.get(name)}')
  differing = compared(found, committed)
  print('\n'.join(differing) or 'as committed')
  return int(bool(differing))


if __name__ == '__main__':
  sys.exit(main())
