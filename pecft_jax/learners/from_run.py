"""The learner of a work directory."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pecft_jax.backbones import FAMILIES, find_card
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.sharding import Layout, one_device, place, tree_shardings
from pecft_jax.files import plain
from pecft_jax.learners.from_settings import NotRemade, made_from
from pecft_jax.learners.learner import Learned, Learner
from pecft_jax.local import local_path, work_directory
from pecft_jax.paths import map_named, named_leaves
from pecft_jax.settings import settings_of
from pecft_jax.train.adapted import place_of_seed
from pecft_jax.train.state import no_task
from pecft_jax.typing import Backbone, ContinualMethod, Params, Pretrained, WeightsIdentity
from pecft_jax.workdir.branch import find_after
from pecft_jax.workdir.checkpoint import check_leaves
from pecft_jax.workdir.claim import check_config, read_config
from pecft_jax.workdir.stored import leaf_of, read_whole

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
    directory: the work directory of a run, or of one of its references.
    after_task: number of tasks, from 1; by default the last task with a checkpoint. A run keeps
      those of all tasks with `keep_tasks`.
    seed: which of seeds side by side.
    model: the backbone and its weights; by default read from the files that the run recorded.
    method: that of the run; by default made from its settings.
    layout: devices; the first one by default.

  Raises:
    ValueError: if there is no such run, checkpoint or seed, the model or the method differs from
      the run's, or one of them cannot be made from what was recorded.
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
  directory = _of_all_seeds(work_directory(directory))
  layout = one_device() if layout is None else layout
  config = read_config(directory)
  at = place_of_seed(directory, seed)
  method = _method(directory, config, model, method)
  model = _model(directory, config, method.backbone) if model is None else model
  _check_weights(directory, config, model)
  tick, contents = find_after(directory, after_task)
  state = read_whole(directory / 'checkpoints' / str(tick), contents)
  state = _learned(method, model.params, state, tick, at)
  put = lambda tree: place(tree, tree_shardings(layout, tree))
  names = config.get('class_names') or map(str, config['identity']['class_order'])
  return Learner(
    model=model._replace(params=put(model.params)),
    method=method,
    state=put(state),
    class_names=tuple(names),
    tasks=int(state.task.index) + 1,
    facts=config,
    layout=layout,
  )


def _of_all_seeds(directory: pathlib.Path) -> pathlib.Path:
  """The directory with the checkpoints of a seed that was learned side by side with others."""
  parent = directory.parent
  if (directory / 'checkpoints').exists() or not (parent / 'config.json').is_file():
    return directory
  seeds = read_config(parent).get('seeds_together') or ()
  if directory.name in {f'seed_{seed}' for seed in seeds}:
    number = directory.name.removeprefix('seed_')
    raise ValueError(f'{directory} has its checkpoints in {parent}: name that, with seed {number}')
  return directory


def _method(
  directory: pathlib.Path,
  config: Mapping[str, Any],
  model: Pretrained | None,
  method: ContinualMethod | None,
) -> ContinualMethod:
  """The method of a run, made from its settings or compared with them."""
  if method is None:
    try:
      return made_from(config['method'], backbone=None if model is None else model.backbone)
    except NotRemade as error:
      raise ValueError(f'{directory / "config.json"}: {error}; {_BY_HAND}') from error
  here = {'method': settings_of(method)}
  check_config(directory / 'config.json', {'method': config.get('method')}, plain(here))
  return method


def _model(directory: pathlib.Path, config: Mapping[str, Any], backbone: Backbone) -> Pretrained:
  """The weights of a run, from the file that it recorded."""
  source = config.get('weights')
  if not isinstance(source, Mapping) or backbone.family not in FAMILIES:
    raise ValueError(
      f'{directory / "config.json"} does not say where the weights of {backbone.name} are; '
      f'{_BY_HAND}'
    )
  if 'random' in source:
    params = backbone.init(jax.random.key(source['random']))
    identity = {'backbone_sha256': f'random, seed {source["random"]}'}
    return Pretrained(backbone, params, None, WeightsIdentity(identity, params))
  path = local_path(source['file']) if 'file' in source else find_card(source['card']).file
  if path is None or not path.is_file():
    raise ValueError(
      f'the weights of {backbone.name} are no longer at {path}: give them as '
      'model=pretrained(card, weights)'
    )
  found = FAMILIES[backbone.family].load(path, backbone)
  identity = WeightsIdentity({'backbone_sha256': found.sha256}, found.params)
  return Pretrained(backbone, found.params, found.head, identity)


def _check_weights(directory: pathlib.Path, config: Mapping[str, Any], model: Pretrained) -> None:
  """Raises ValueError for other weights than those of a run."""
  there, known = config['identity'].get('backbone_sha256'), model.identity
  here = known.get('backbone_sha256')
  if here is None or (isinstance(known, WeightsIdentity) and not known.is_of(model.params)):
    here = tree_sha256(model.params)
  if there != here:
    raise ValueError(
      f'{directory} was learned on other weights: backbone_sha256 there {there}, here {here}'
    )


def _learned(
  method: ContinualMethod, frozen: Params, state: Any, tick: int, at: int | None
) -> Learned:
  """The arrays of a checkpoint for the method; `at` is the index of one of many seeds."""
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), frozen)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params, memory = jax.eval_shape(method.init, key, shapes)
  step = jax.ShapeDtypeStruct((), np.int32)
  like = Learned(params, memory, jax.eval_shape(lambda: no_task(method.capacity)), step)
  wanted = dict(map(leaf_of, named_leaves(like)))
  used = lambda name: name.partition('/')[0] in like._fields
  stored = {name: leaf for name, leaf in named_leaves(state) if used(name)}
  if at is not None:
    stored = {name: leaf[at] for name, leaf in stored.items()}
  check_leaves(str(tick), wanted, dict(leaf_of(named) for named in stored.items()))

  def taken(name: str, leaf: Any) -> Any:
    found = stored[name]
    typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(found) if typed else found

  return map_named(taken, like)
