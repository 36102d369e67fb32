"""A learner as a directory of files that another machine reads.

A bundle holds `bundle.json` (settings, class names, the record of the run, digests),
`state.safetensors` (what the method carries) and, if asked for, `weights.safetensors` (of the
backbone). Nothing in it is executed on reading: there is no pickle and no code.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pecft_jax.backbones import quantised
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.sharding import Layout, one_device
from pecft_jax.environment import environment, now
from pecft_jax.files import plain, read_object
from pecft_jax.learners.from_settings import NotRemade
from pecft_jax.learners.learner import Learner
from pecft_jax.learners.parts import check_weights, learned, method_of, placed, weights_from
from pecft_jax.local import local_path
from pecft_jax.paths import map_named, named_leaves
from pecft_jax.settings import settings_of
from pecft_jax.typing import Backbone, ContinualMethod, Pretrained, WeightsIdentity
from pecft_jax.workdir.checkpoint import check_leaves
from pecft_jax.workdir.stored import leaf_of

DESCRIPTION, STATE, WEIGHTS = 'bundle.json', 'state.safetensors', 'weights.safetensors'
FORMAT, VERSION = 'pecft_jax bundle', 1


def is_bundle(directory: str | pathlib.Path) -> bool:
  """Whether a directory holds a bundle.

  Args:
    directory: any path, which need not exist.

  >>> is_bundle('.')
  False
  """
  return (local_path(directory) / DESCRIPTION).is_file()


def save_bundle(learner: Learner, directory: str | pathlib.Path, *, weights: bool = True) -> None:
  """Writes a learner as a directory that `load_bundle` reads.

  Args:
    learner: of any method.
    directory: made if it does not exist; must be empty.
    weights: also write the weights of the backbone. Without them the bundle is small, and is read
      where the weights come with the library, or are given.

  Raises:
    ValueError: if the directory is not empty.

  >>> from pecft_jax import backbones, continual
  >>> from pecft_jax.learners import Learned, Learner, load_bundle
  >>> from pecft_jax.train.state import no_task
  >>> from pecft_jax.typing import Capacity
  >>> model = backbones.pretrained('vit_glyphs16')
  >>> method = continual.simplecil(model.backbone, Capacity(tasks=2, classes=4))
  >>> params, memory = method.init(jax.random.key(0), model.params)
  >>> state = Learned(params, memory, no_task(method.capacity), jax.numpy.zeros((), 'int32'))
  >>> learner = Learner(
  ...   model=model, method=method, state=state, class_names=tuple('abcd'), tasks=0
  ... )
  >>> save_bundle(learner, 'mine', weights=False)
  >>> load_bundle('mine')
  Learner(simplecil on vit_glyphs16, tasks=0, classes=0 of 4)
  """
  from safetensors.numpy import save

  directory = new_directory(directory)
  trees = {STATE: learner.state, **({WEIGHTS: learner.model.params} if weights else {})}
  digests = {}
  for name, tree in trees.items():
    content = save(host_arrays(tree))
    (directory / name).write_bytes(content)
    digests[name] = hashlib.sha256(content).hexdigest()
  identity = learner.model.identity
  source = identity.source if isinstance(identity, WeightsIdentity) else None
  description = {
    'format': FORMAT,
    'version': VERSION,
    'written': now(),
    'environment': environment(),
    'method': settings_of(learner.method),
    'tasks': learner.tasks,
    'class_names': list(learner.class_names),
    'backbone_sha256': identity.get('backbone_sha256', tree_sha256(learner.model.params)),
    'weights': source,
    **({'frozen_weights': identity['frozen_weights']} if 'frozen_weights' in identity else {}),
    'files': digests,
    'facts': dict(learner.facts),
  }
  text = json.dumps(plain(description), indent=1)
  (directory / DESCRIPTION).write_text(text + '\n', encoding='utf-8')


def load_bundle(
  directory: str | pathlib.Path,
  *,
  model: Pretrained | None = None,
  method: ContinualMethod | None = None,
  layout: Layout | None = None,
) -> Learner:
  """Reads a learner that `save_bundle` or `pecft export --format bundle` wrote.

  Args:
    directory: of the bundle.
    model: the backbone and its weights, where the bundle does not hold them and they do not come
      with the library.
    method: where its settings do not hold all of it, as for one of your own.
    layout: devices; the first one by default.

  Raises:
    ValueError: if the directory holds no bundle, one of a newer version, or files that are not what
      was written; if the model or the method is another, or the weights are missing.
    NotRemade: a ValueError, if the method cannot be made from its settings, and none is given.

  >>> load_bundle('absent')
  Traceback (most recent call last):
    ...
  ValueError: absent/bundle.json is not the description of a bundle: there is no such file
  """
  directory = local_path(directory)
  path = directory / DESCRIPTION
  layout = one_device() if layout is None else layout
  found = _description(path)
  try:
    method = method_of(path, found['method'], model, method)
  except NotRemade as error:
    remedy = 'give what it was made of: load_bundle(directory, model=..., method=...)'
    raise NotRemade(f'{path}: {error}; {remedy}') from error
  if model is None and WEIGHTS in found['files']:
    model = _weights(directory, found, method.backbone)
  else:
    model = weights_from(path, found['weights'], method.backbone) if model is None else model
    check_weights(directory, found['backbone_sha256'], model)
  leaves = _arrays(directory, STATE, found['files'])
  state = learned(str(directory / STATE), leaves, method, model.params)
  return Learner(
    model=model._replace(params=placed(layout, model.params)),
    method=method,
    state=placed(layout, state),
    class_names=tuple(found['class_names']),
    tasks=found['tasks'],
    facts=found['facts'],
    layout=layout,
  )


def new_directory(directory: str | pathlib.Path) -> pathlib.Path:
  """Makes a directory. Raises ValueError for one that holds something."""
  directory = local_path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f'{directory} is there already: give a new or empty directory')
  directory.mkdir(parents=True, exist_ok=True)
  return directory


def host_arrays(tree: Any) -> dict[str, np.ndarray]:
  """The leaves of a tree by their paths, in host memory; keys are their data."""

  def whole(leaf: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    # A scalar stays one: `ascontiguousarray` would give it an axis.
    return np.asarray(leaf).copy(order='C')

  return {name: whole(leaf) for name, leaf in named_leaves(tree)}


_ENTRIES = {
  'method': dict, 'tasks': int, 'class_names': list, 'backbone_sha256': str, 'files': dict,
  'facts': dict,
}  # fmt: skip


def _description(path: pathlib.Path) -> dict[str, Any]:
  found = read_object(path, 'the description of a bundle')
  if found.get('format') != FORMAT:
    raise ValueError(f'{path} is not the description of a bundle: its format is not {FORMAT!r}')
  if found.get('version') != VERSION:
    raise ValueError(
      f'{path} has version {found.get("version")!r}, this library reads {VERSION}: read it with a '
      'newer one'
    )
  for key, kind in _ENTRIES.items():
    if not isinstance(found.get(key), kind):
      raise ValueError(f'{path}: expected {kind.__name__} for {key}, got {found.get(key)!r:.60}')
  return {'weights': None, **found}


def _arrays(
  directory: pathlib.Path, name: str, digests: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The arrays of one file, checked by its digest."""
  from safetensors.numpy import load_file

  path = directory / name
  if not path.is_file():
    raise ValueError(f'{directory} lacks {name}, which its {DESCRIPTION} names')
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if digest != digests.get(name):
    raise ValueError(f'{path} is damaged: it has another sha256 than {DESCRIPTION} says')
  return load_file(path)


def _weights(directory: pathlib.Path, found: Mapping[str, Any], backbone: Backbone) -> Pretrained:
  """The weights that the bundle holds."""
  arrays = _arrays(directory, WEIGHTS, found['files'])
  form = found.get('frozen_weights')

  def made(key: Any) -> Any:
    params = backbone.init(key)
    return params if form is None else quantised(Pretrained(backbone, params), form).params

  want = jax.eval_shape(made, jax.eval_shape(lambda: jax.random.key(0)))
  # Weights may be kept in another dtype than fresh ones.
  shapes = lambda leaves: {name: leaf_of((name, leaf))[1][0] for name, leaf in leaves}
  check_leaves(str(directory / WEIGHTS), shapes(named_leaves(want)), shapes(arrays.items()))
  params = map_named(lambda name, leaf: jax.numpy.asarray(arrays[name]), want)
  values = {'backbone_sha256': found['backbone_sha256']}
  identity = WeightsIdentity(values if form is None else {**values, 'frozen_weights': form}, params)
  return Pretrained(backbone, params, None, identity)
