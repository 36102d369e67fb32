"""Runs every case on eight virtual devices and on one; writes how far they are apart.

    python eight_devices.py OUT.json [CASE ...]

The process must see eight devices.
"""

import contextlib
import functools
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from collecting import collect_rarely
from compiled_once import compile_once
from jax.sharding import AxisType
from kinds import kinds_in_method, one_of_each
from tinies import METHOD_NAMES, WRAPPED_NAMES
from tiny_runs import TRAINING, outcome, silent, tiny_experiment, tiny_method

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import finetune
from pecft_jax.devices.sharding import tree_shardings
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.train import (
  Experiment,
  Layout,
  Stopped,
  compile_steps,
  fsdp,
  job,
  make_mesh,
  one_device,
  run,
  split_memory,
  tensor_parallel,
)
from pecft_jax.typing import Capacity, Env, Parts, Pretrained
from pecft_jax.workdir.checkpoint import Checkpoints

TASKS = 2
CAPACITY = Capacity(TASKS, 2 * TASKS)
STATISTICS, BUFFERS = ('simplecil', 'ease'), ('derpp(finetune)',)
MOVING = ('vit', *BUFFERS)
LAYOUTS = ('data 8', 'data 4, model 2', 'fsdp')
KEEPING = 'data 4, model 2'  # The layout of runs with and without parts that are kept.
# Buffers have slots for all devices to share.
CASES = (
  *one_of_each((*METHOD_NAMES, *WRAPPED_NAMES), kinds_in_method, preferred=(*STATISTICS, *BUFFERS)),
  'vit',
)


def _kind_of_parts(case: str) -> Any:
  """What evaluations see of the parts of a method's answers; None where there are none."""
  predict = tiny_method(case).predict if case != 'vit' else None
  return (predict.slots > 1, predict.used is None) if isinstance(predict, Parts) else None


IN_PARTS = tuple(
  case for case in one_of_each(CASES, _kind_of_parts, preferred=STATISTICS) if _kind_of_parts(case)
)


@functools.cache
def layouts_of(case: str) -> tuple[str, ...]:
  """Names of the layouts that a case runs in.

  The transformer, cases that are looked at further, and the first with each hook and each kind of
  phase run in all of them. Others share their code with these, and run in one of the two in which
  weights are split, by turns.
  """
  if case in (*STATISTICS, *MOVING, *IN_PARTS) or case not in CASES:
    return LAYOUTS
  number = CASES.index(case)
  if kinds_in_method(case).difference(*map(kinds_in_method, CASES[:number])):
    return LAYOUTS
  return (LAYOUTS[1 + number % 2],)


@functools.cache
def layouts() -> dict[str, Layout]:
  """Ways to use eight devices."""
  over_two = (*tensor_parallel(), *split_memory('data', 'model'))
  return {
    'data 8': Layout(make_mesh({'data': 8}), split_memory()),
    'data 4, model 2': Layout(make_mesh({'data': 4, 'model': 2}), over_two),
    'fsdp': Layout(make_mesh({'data': 8}), (*fsdp(), *split_memory())),
  }


@functools.cache
def experiment_of(case: str) -> Experiment:
  """A method on the tiny model, or a transformer, whose leaves the rules are made for."""
  training = TRAINING._replace(batch_size=8, eval_batch_size=8, epochs=2)
  if case != 'vit':
    return tiny_experiment(case, TASKS, training=training)
  backbone = vit(
    image_size=4, channels=1, patch=2, width=16, depth=1, heads=2, mlp_ratio=2, mean=(0.5,),
    std=(0.5,),
  )  # fmt: skip
  peft = lora(r'attn/(q|v|out)$|mlp', rank=2, dropout=0.2)
  return tiny_experiment('finetune', TASKS, training=training).replace(
    model=Pretrained(backbone, jax.jit(backbone.init)(jax.random.key(1))),
    method=finetune(backbone, CAPACITY, peft=peft),
  )


@functools.cache
def abstract_state(name: str) -> Any:
  """The shapes of a state."""
  experiment = experiment_of(name)
  steps = compile_steps(
    experiment.method, experiment.training.recipe, one_device(), experiment.frozen
  )
  return jax.eval_shape(steps.init, jax.random.key(0), experiment.frozen)


def final_state(name: str, workdir: pathlib.Path) -> Any:
  """The state that a run ended with, on one device."""
  like = abstract_state(name)
  found = Checkpoints(workdir / 'checkpoints').newest(
    like, tree_shardings(one_device(), like), print
  )
  assert found is not None
  return found[0]


@functools.cache
def predicting(name: str) -> Any:
  """`(state) -> list`, the predictions over all test examples."""
  experiment = experiment_of(name)
  tests = [task.test for task in experiment.scenario.tasks]
  x = np.concatenate([test.inputs[test.rows] for test in tests])
  predict = jax.jit(experiment.method.predict)

  def run(state: Any) -> list[int]:
    logits = predict(state.params, state.memory, Env(experiment.frozen, state.task), x)
    return logits.argmax(-1).tolist()

  return run


def distances(a: Any, b: Any) -> dict[str, float]:
  """The largest difference in each leaf of two states, over max(1, its largest entry)."""
  out = {}
  for (name, one), (_, other) in zip(named_leaves(a), named_leaves(b), strict=True):
    x, y = np.asarray(one, np.float64), np.asarray(other, np.float64)
    out[name] = float(np.abs(x - y).max(initial=0) / max(1, np.abs(y).max(initial=0)))
  return out


def matrix(results: dict[str, Any]) -> Any:
  """The matrix of a run, whatever is measured."""
  return next(value for key, value in results.items() if key.endswith('_matrix'))


def compare(case: str, root: pathlib.Path) -> dict[str, Any]:
  """One experiment in several layouts, against one device."""
  experiment, predict = experiment_of(case), predicting(case)
  whole = run(experiment, root / 'one', silent())
  state = final_state(case, root / 'one')
  out = {}
  for name in layouts_of(case):
    found = run(experiment, root / name, silent(layout=layouts()[name]))
    other = final_state(case, root / name)
    out[name] = {
      'accuracy': matrix(found) == matrix(whole),
      'predictions': predict(other) == predict(state),
      'distances': distances(other, state),
      'compilations': found['compilations'],
    }
  return out


def keeping(case: str, root: pathlib.Path) -> dict[str, bool]:
  """Runs that keep parts of answers against one that keeps none, on one mesh."""
  experiment, layout = experiment_of(case), layouts()[KEEPING]
  run(experiment, root / 'none', silent(layout=layout, parts_memory=0, parts_disk=0))
  on_disk = silent(layout=layout, parts_memory=0)
  with _stopping_after(13), contextlib.suppress(Stopped):
    run(experiment, root / 'disk', on_disk)
  there = any((root / 'disk' / 'parts').glob('*'))
  run(experiment, root / 'disk', on_disk)
  none = outcome(root / 'none')
  return {
    'there': there,
    'memory': outcome(root / KEEPING) == none,
    'disk': outcome(root / 'disk') == none,
  }


def moving(case: str, root: pathlib.Path) -> dict[str, Any]:
  """Started on eight devices, resumed on four, and then on one."""
  experiment = experiment_of(case)
  types = (AxisType.Auto,) * 2
  devices = jax.devices()[:4]
  four = jax.make_mesh((2, 2), ('data', 'model'), axis_types=types, devices=devices)
  for layout in (layouts()['data 4, model 2'], Layout(four, tensor_parallel())):
    with _stopping_after(6), contextlib.suppress(Stopped):
      run(experiment, root / 'moving', silent(layout=layout))
  ticks = Checkpoints(root / 'moving/checkpoints').ticks()
  found = run(experiment, root / 'moving', silent())
  whole = json.loads((root / 'one/results.json').read_text())
  state = final_state(case, root / 'moving')
  return {
    'ticks': ticks[-1],
    'accuracy': matrix(found) == matrix(whole),
    'distances': distances(state, final_state(case, root / 'one')),
  }


@contextlib.contextmanager
def _stopping_after(ticks: int):
  module = sys.modules['pecft_jax.train.running']
  before, left = module.stop_signals, iter(range(1, 1000))

  @contextlib.contextmanager
  def signals():
    yield lambda: next(left) >= ticks

  module.stop_signals = signals
  try:
    yield
  finally:
    module.stop_signals = before


def main(out: str, *cases: str) -> None:
  """Runs cases; all, if none are named."""
  assert jax.device_count() == 8, jax.devices()
  collect_rarely()
  job.compile_steps = compile_once
  found: dict[str, Any] = {'runs': {}, 'keeping': {}, 'moving': {}}
  for case in cases or CASES:
    root = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(out).parent))
    found['runs'][case] = compare(case, root)
    if case in IN_PARTS:
      found['keeping'][case] = keeping(case, root)
    if case in MOVING:
      found['moving'][case] = moving(case, root)
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
