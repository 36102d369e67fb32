"""Runs every case on eight virtual devices and on one; writes how far they are apart.

    python eight_devices.py OUT.json

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
from jax.sharding import AxisType
from tiny_runs import TRAINING, quiet, tiny_experiment

from pecft_jax.backbones.vit import vit
from pecft_jax.continual.finetune import finetune
from pecft_jax.data import joined
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lora import lora
from pecft_jax.train import (
  Experiment,
  Layout,
  Stopped,
  compile_steps,
  fsdp,
  make_mesh,
  one_device,
  run,
  tensor_parallel,
)
from pecft_jax.train.checkpoint import Checkpoints
from pecft_jax.train.sharding import Rule, tree_shardings
from pecft_jax.typing import Capacity, Env

TASKS = 3
MOVING = ('vit', 'derpp(finetune)')
FSDP = ('vit', 'finetune', 'ranpac')
TINY = ('finetune', 'l2p', 'olora', 'ease', 'ranpac', 'derpp(finetune)')
VIT_RULES = (*tensor_parallel(), Rule(r'^params/head/kernel$', ('model', None)))


def layouts() -> dict[str, Layout]:
  """Ways to use eight devices."""
  return {
    'data 8': Layout(make_mesh({'data': 8})),
    'data 4, model 2': Layout(make_mesh({'data': 4, 'model': 2}), tensor_parallel()),
    'fsdp': Layout(make_mesh({'data': 8}), fsdp()),
  }


@functools.cache
def experiments() -> dict[str, Experiment]:
  """Every method on the tiny model, and a transformer, whose leaves the rules are made for."""
  training = TRAINING._replace(batch_size=8, eval_batch_size=8, epochs=2)
  cases = {name: tiny_experiment(name, TASKS, training=training) for name in TINY}
  backbone = vit(
    image_size=4, channels=1, patch=2, width=16, depth=1, heads=2, mlp_ratio=2, mean=(0.5,),
    std=(0.5,),
  )  # fmt: skip
  peft = lora(r'attn/(q|v|out)$|mlp', rank=2)
  cases['vit'] = cases['finetune']._replace(
    backbone=backbone,
    frozen=backbone.init(jax.random.key(1)),
    method=finetune(backbone, peft, Capacity(TASKS, 2 * TASKS)),
  )
  return cases


@functools.cache
def abstract_state(name: str) -> Any:
  """The shapes of a state."""
  experiment = experiments()[name]
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
  experiment = experiments()[name]
  split = joined([task.test for task in experiment.scenario.tasks])
  x = split.inputs[split.rows]
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


def compare(case: str, root: pathlib.Path) -> dict[str, Any]:
  """One experiment in several layouts, against one device."""
  experiment, predict = experiments()[case], predicting(case)
  whole = run(experiment, root / 'one', console=quiet())
  state = final_state(case, root / 'one')
  out = {}
  for name, layout in layouts().items():
    if name == 'fsdp' and case not in FSDP:
      continue
    found = run(experiment, root / name, layout=layout, console=quiet())
    other = final_state(case, root / name)
    out[name] = {
      'accuracy': found['accuracy_matrix'] == whole['accuracy_matrix'],
      'predictions': predict(other) == predict(state),
      'distances': distances(other, state),
      'compilations': found['compilations'],
    }
  return out


def moving(case: str, root: pathlib.Path) -> dict[str, Any]:
  """Started on eight devices, resumed on four, and then on one."""
  experiment = experiments()[case]
  types = (AxisType.Auto,) * 2
  devices = jax.devices()[:4]
  four = jax.make_mesh((2, 2), ('data', 'model'), axis_types=types, devices=devices)
  for layout in (layouts()['data 4, model 2'], Layout(four, tensor_parallel())):
    with _stopping_after(9), contextlib.suppress(Stopped):
      run(experiment, root / 'moving', layout=layout, console=quiet())
  ticks = Checkpoints(root / 'moving/checkpoints').ticks()
  found = run(experiment, root / 'moving', console=quiet())
  whole = json.loads((root / 'one/results.json').read_text())
  state = final_state(case, root / 'moving')
  return {
    'ticks': ticks[-1],
    'accuracy': found['accuracy_matrix'] == whole['accuracy_matrix'],
    'distances': distances(state, final_state(case, root / 'one')),
  }


@contextlib.contextmanager
def _stopping_after(ticks: int):
  module = sys.modules['pecft_jax.train.run']
  before, left = module.stop_signals, iter(range(1, 1000))

  @contextlib.contextmanager
  def signals():
    yield lambda: next(left) >= ticks

  module.stop_signals = signals
  try:
    yield
  finally:
    module.stop_signals = before


def specs(experiment: Experiment) -> dict[str, str]:
  """Where the leaves of a transformer, and of what is trained of it, lie."""
  layout = Layout(make_mesh({'data': 4, 'model': 2}), VIT_RULES)
  recipe = experiment.training.recipe
  steps = compile_steps(experiment.method, recipe, layout, experiment.frozen)
  trees = (steps.state_shardings, steps.frozen_shardings)
  return {name: str(tuple(s.spec)) for tree in trees for name, s in named_leaves(tree)}


def main(out: str) -> None:
  """Runs all cases."""
  assert jax.device_count() == 8, jax.devices()
  found: dict[str, Any] = {'runs': {}, 'moving': {}}
  for case in experiments():
    root = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(out).parent))
    found['runs'][case] = compare(case, root)
    if case in MOVING:
      found['moving'][case] = moving(case, root)
  found['specs'] = specs(experiments()['vit'])
  pathlib.Path(out).write_text(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
