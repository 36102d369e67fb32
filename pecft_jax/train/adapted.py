"""The adapted backbone of a run after a task, read from its checkpoints."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.devices.sharding import one_device, tree_shardings
from pecft_jax.files import plain
from pecft_jax.local import work_directory
from pecft_jax.train.experiment import Experiment, configuration, identified, trained_as
from pecft_jax.train.step import compile_steps
from pecft_jax.typing import Adapted, Env
from pecft_jax.workdir.branch import check_identity, find_after
from pecft_jax.workdir.checkpoint import read_checkpoint
from pecft_jax.workdir.claim import check_config, read_config
from pecft_jax.workdir.lanes import lane_of


class After(NamedTuple):
  """The outcome of a run after some of its tasks."""

  tasks: int
  adapted: Adapted


def adapted_after(
  experiment: Experiment,
  workdir: str | pathlib.Path,
  tasks: int | None = None,
  *,
  seed: int | None = None,
) -> After:
  """The delta and the classifier that a run had after a number of tasks.

  Nothing is written, removed or locked.

  Args:
    experiment: that of the run.
    workdir: of the run, or of one of several side by side.
    tasks: from 1; by default the last task with a checkpoint.
    seed: which of seeds side by side, where the directory is that of all.

  Raises:
    ValueError: if there is no such checkpoint or seed, the run is of another
      experiment, or the method predicts with more than one delta.
    Damaged: if a checkpoint differs from what was written.
    Unread: if one could not be read for another reason.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import RunOptions, Training, run, sgd
  >>> images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.finetune(model.backbone, scenario.capacity)
  >>> training = Training(sgd(0.1), epochs=1, batch_size=2, eval_batch_size=2)
  >>> experiment = Experiment(model, scenario, method, training)
  >>> quiet = RunOptions(console=Console(quiet=True))
  >>> results = run(experiment, 'runs/shades', quiet)
  >>> after = adapted_after(experiment, 'runs/shades')
  >>> after.tasks, sorted(after.adapted.delta)
  (2, ['block_0/attn/q', 'block_0/attn/v'])
  """
  directory, method = work_directory(workdir), experiment.method
  experiment = trained_as(identified(experiment), method)
  if method.adapted is None:
    raise ValueError(
      f'{method.name} has no single delta that does what its predictions need: expected a method '
      'with `adapted`, such as finetune, or a wrapper around one'
    )
  lane, here = lane_of(directory, seed), configuration(experiment)
  check_config(lane.record / 'config.json', {key: lane.config.get(key) for key in here}, here)
  tick, contents = find_after(lane.directory, tasks)
  # Of orders side by side, checkpoints have the identity of the first.
  known = plain(here['identity']) if lane.index is None else read_config(lane.directory)['identity']
  check_identity(lane.directory, contents.identity or {}, known)
  stacked = lane.index is not None
  steps = compile_steps(
    method, experiment.training.recipe, one_device(), experiment.frozen, stacked=stacked
  )
  like = jax.eval_shape(
    steps.init, _key(len(contents.position['seeds']), stacked), experiment.frozen
  )
  path = lane.directory / 'checkpoints' / str(tick)
  state, _ = read_checkpoint(path, like, tree_shardings(one_device(), like))
  if stacked:
    state = jax.tree.map(lambda leaf: leaf[lane.index], state)
  env = Env(experiment.frozen, state.task)
  return After(int(state.task.index) + 1, method.adapted(state.params, state.memory, env))


def _key(seeds: int, stacked: bool) -> Any:
  """Abstract key, or keys."""
  make = lambda: jax.vmap(jax.random.key)(jnp.arange(seeds)) if stacked else jax.random.key(0)
  return jax.eval_shape(make)
