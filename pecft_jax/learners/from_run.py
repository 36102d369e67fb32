"""The learner of a work directory."""

import pathlib

from pecft_jax.devices.sharding import Layout, one_device
from pecft_jax.learners.from_settings import NotRemade
from pecft_jax.learners.learner import Learned, Learner
from pecft_jax.learners.parts import check_weights, learned, method_of, placed, weights_from
from pecft_jax.local import work_directory
from pecft_jax.paths import named_leaves
from pecft_jax.typing import ContinualMethod, Pretrained
from pecft_jax.workdir.branch import find_after
from pecft_jax.workdir.lanes import lane_of
from pecft_jax.workdir.stored import read_whole

_BY_HAND = 'give what the experiment was made of: load_run(directory, model=..., method=...)'


def load_run(
  directory: str | pathlib.Path,
  after_task: int | None = None,
  *,
  seed: int | None = None,
  model: Pretrained | None = None,
  method: ContinualMethod | None = None,
  layout: Layout | None = None,
) -> Learner:
  """Loads the learner of a run after some of its tasks; the run may still be going on.

  The method is made from the settings that the run recorded, and the backbone from its card and its
  weights file, so the experiment file is not needed. Where the settings are incomplete, as for a
  method of your own, give `model` and `method`. Nothing is written, removed or locked.

  Args:
    directory: the work directory of a run, of one of its references, or of one of several
      experiments side by side.
    after_task: number of tasks, from 1; by default the last task with a checkpoint. A run keeps
      those of all tasks with `keep_tasks`.
    seed: which of seeds side by side, where the directory is that of all.
    model: the backbone and its weights; by default read from the files that the run recorded.
    method: that of the run; by default made from its settings.
    layout: devices; the first one by default.

  Raises:
    ValueError: if there is no such run, checkpoint or seed, or the model or the method differs from
      the run's.
    NotRemade: a ValueError, where one of them cannot be made from what was recorded.
    Damaged: if a checkpoint differs from what was written.
    Unread: if one could not be read for another reason.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import Experiment, RunOptions, Training, run, sgd
  >>> images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.simplecil(model.backbone, scenario.capacity)
  >>> training = Training(sgd(0.1), epochs=1, batch_size=2, eval_batch_size=2)
  >>> experiment = Experiment(model, scenario, method, training)
  >>> results = run(experiment, 'runs/shades', RunOptions(console=Console(quiet=True)))
  >>> learner = load_run('runs/shades')
  >>> learner
  Learner(simplecil on vit_glyphs16-random, tasks=2, classes=2 of 2)
  >>> learner.predict(images).shape, learner.features(images).shape
  ((4, 2), (4, 8))
  """
  lane = lane_of(work_directory(directory), seed)
  layout = one_device() if layout is None else layout
  config, path = lane.config, lane.record / 'config.json'
  try:
    method = method_of(path, config['method'], model, method)
  except NotRemade as error:
    raise NotRemade(f'{path}: {error}; {_BY_HAND}') from error
  model = weights_from(path, config.get('weights'), method.backbone) if model is None else model
  check_weights(lane.record, config['identity'].get('backbone_sha256'), model)
  tick, contents = find_after(lane.directory, after_task)
  whole = read_whole(lane.directory / 'checkpoints' / str(tick), contents)
  # Optimizer states and keys serve training alone.
  used = lambda name: name.partition('/')[0] in Learned._fields
  leaves = {name: leaf for name, leaf in named_leaves(whole) if used(name)}
  if lane.index is not None:
    leaves = {name: leaf[lane.index] for name, leaf in leaves.items()}
  state = learned(f'checkpoint {tick}', leaves, method, model.params)
  names = config.get('class_names') or map(str, config['identity']['class_order'])
  return Learner(
    model=model._replace(params=placed(layout, model.params)),
    method=method,
    state=placed(layout, state),
    class_names=tuple(names),
    tasks=int(state.task.index) + 1,
    facts=config,
    layout=layout,
  )
