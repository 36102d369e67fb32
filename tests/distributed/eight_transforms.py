"""Every transform on eight virtual devices beside one; writes how far they are apart.

    python eight_transforms.py OUT.json

The process must see eight devices.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from collecting import collect_rarely
from kinds import kind_of_peft, one_of_each
from tiny_runs import TRAINING, tiny_experiment, tiny_method, tiny_world

from pecft_jax.about import tinies
from pecft_jax.continual.plan import Calibrated, Calibrating, plan_of
from pecft_jax.devices.sharding import batched, place, traced_on, tree_shardings
from pecft_jax.peft import PEFTS, combine, split_kept
from pecft_jax.train import Layout, fsdp, make_mesh, tensor_parallel
from pecft_jax.train.phases import Run, begin, calibrate, calibrated
from pecft_jax.train.schedule import task_arrays
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch, Params, TrainState

TRANSFORMS = {name: make() for name, make in tinies(PEFTS).items()}
# Those that do more than the loss asks for: they are trained, too.
LIVING = [name for name, peft in TRANSFORMS.items() if peft.calibrate or peft.after or peft.penalty]
LAYOUTS = ('data 4, model 2', 'fsdp')
KINDS = one_of_each(TRANSFORMS, kind_of_peft)


def layouts_of(name: str) -> tuple[str, ...]:
  """Layouts that a transform is compared in: one of each kind in both, others by turns."""
  number = list(TRANSFORMS).index(name)
  return LAYOUTS if name in (*KINDS, *LIVING) else (LAYOUTS[number % 2],)


def loss(active: Any, kept: Any, frozen: Params, images: Any) -> Any:
  """The sum of what each transform's features give, and these features [B, D] by name."""
  backbone, deltas = tiny_world('adapters').model.backbone, combine(active, kept)
  pooled = {
    name: backbone.apply(frozen, images, deltas[name], peft=peft).pooled
    for name, peft in TRANSFORMS.items()
    if name in deltas
  }
  return sum(jnp.square(each - 1).mean() for each in pooled.values()), pooled


def life(name: str, layout: Layout | None, state: TrainState, frozen: Params, batch: Batch) -> Any:
  """What a task of fine-tuning trains: its calibration, if it has any, and all updates."""
  method = tiny_method(f'finetune[{name}]')
  task = task_arrays(tiny_experiment(f'finetune[{name}]'), method, 0)

  def split(state: TrainState) -> TrainState:
    """As between the functions of a run."""
    if layout is None:
      return state
    return jax.lax.with_sharding_constraint(state, tree_shardings(layout, state))

  run = Run(method, TRAINING.recipe)
  state = split(begin(run, state, frozen, task))
  for step in plan_of(method):
    match step:
      case Calibrating():
        state = split(calibrate(method, step, 0, state, frozen, batch))
      case Calibrated():
        state = split(calibrated(run, step, state, frozen))
  update = lambda state, _: (split(train_step(method, run.recipe, state, frozen, batch)[0]), None)
  return jax.lax.scan(update, state, length=int(task.steps))[0].params


def program(layout: Layout | None) -> Any:
  """All of it in one program: nearly all time goes into compiling."""

  def run(
    active: Any, kept: Any, frozen: Params, states: Any, images: Any, batch: Batch
  ) -> dict[str, Any]:
    grads, pooled = jax.grad(loss, has_aux=True)(active, kept, frozen, images)
    lives = {name: life(name, layout, states[name], frozen, batch) for name in LIVING}
    return {'gradients': grads, 'features': pooled, 'trained': lives}

  return jax.jit(run if layout is None else traced_on(layout, run))


def apart(a: Any, b: Any) -> float:
  """The largest difference of two trees, in each leaf over max(1, its largest entry)."""

  def one(x: Any, y: Any) -> float:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return float(np.abs(x - y).max(initial=0) / max(1, np.abs(y).max(initial=0)))

  return max(jax.tree.leaves(jax.tree.map(one, a, b)), default=0.0)


def over(layout: Layout, data: Any) -> Any:
  """Arrays split over the mesh as batches are."""
  return place(data, jax.tree.map(lambda _: batched(layout), data))


def shaken(tree: Any) -> Any:
  """With noise on all numbers, so that no part of a delta is at rest."""
  rng = np.random.default_rng(0)

  def one(leaf: np.ndarray) -> np.ndarray:
    noise = 0.1 * rng.standard_normal(leaf.shape)
    return (leaf + noise).astype(leaf.dtype) if leaf.dtype.kind == 'f' else leaf

  return jax.tree.map(one, tree)


def main(out: str) -> None:
  """Compares layouts with one device."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  world = tiny_world('adapters')
  backbone, frozen = world.model.backbone, jax.tree.map(np.asarray, world.model.params)

  def start(frozen: Params) -> Any:
    key, sites = jax.random.key(1), backbone.sites
    deltas = {name: peft.init(key, sites, frozen) for name, peft in TRANSFORMS.items()}
    methods = {name: tiny_method(f'finetune[{name}]') for name in LIVING}
    return deltas, {
      name: init_state(method, TRAINING.recipe, key, frozen) for name, method in methods.items()
    }

  deltas, states = jax.tree.map(np.asarray, jax.jit(start)(frozen))
  trees = *split_kept(shaken(deltas)), frozen, states
  images = np.asarray(jax.random.normal(jax.random.key(2), (8, *backbone.inputs.shape)))
  split = world.scenario.tasks[0].train
  valid, index = np.arange(8) < 7, np.arange(8, dtype=np.int32)
  batch = Batch(split.inputs[split.rows[:8]], split.labels[:8], valid, index)
  whole = program(None)(*trees, images, batch)
  layouts = (
    Layout(make_mesh({'data': 4, 'model': 2}), tensor_parallel()),
    Layout(make_mesh({'data': 8}), fsdp()),
  )
  found = {}
  for name, layout in zip(LAYOUTS, layouts, strict=True):
    some = [peft for peft in TRANSFORMS if name in layouts_of(peft)]
    of_some = lambda tree, some=some: {peft: tree[peft] for peft in some}
    active, kept = map(of_some, trees[:2])
    parts = [place(tree, tree_shardings(layout, tree)) for tree in (active, kept, frozen, states)]
    got = program(layout)(*parts, *over(layout, (images, batch)))
    found[name] = {
      what: {peft: apart(each, whole[what][peft]) for peft, each in by_peft.items()}
      for what, by_peft in got.items()
    }
  size = min(float(np.abs(np.asarray(each)).max()) for each in whole['features'].values())
  pathlib.Path(out).write_text(json.dumps({'apart': found, 'size': size}))


if __name__ == '__main__':
  main(sys.argv[1])
