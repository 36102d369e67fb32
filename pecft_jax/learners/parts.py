"""The parts of a learner, from what was recorded of them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pecft_jax.backbones import FAMILIES, find_card
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.sharding import Layout, place, tree_shardings
from pecft_jax.files import plain
from pecft_jax.learners.from_settings import NotRemade, made_from
from pecft_jax.learners.learner import Learned
from pecft_jax.local import local_path
from pecft_jax.paths import map_named, named_leaves
from pecft_jax.settings import settings_of
from pecft_jax.train.state import no_task
from pecft_jax.typing import Backbone, ContinualMethod, Params, Pretrained, WeightsIdentity
from pecft_jax.workdir.checkpoint import check_leaves
from pecft_jax.workdir.claim import check_config
from pecft_jax.workdir.stored import leaf_of


def method_of(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  model: Pretrained | None,
  method: ContinualMethod | None,
) -> ContinualMethod:
  """The method of recorded settings: made from them, or the one given, compared with them.

  Args:
    path: of the file that holds them, for messages.
    settings: of the method.
    model: whose backbone takes the place of that in the settings; None makes that one.
    method: that was given, if any.

  Raises:
    NotRemade: a ValueError, where the settings do not hold all of the method.
    ValueError: if the method given has other settings.
  """
  if method is None:
    return made_from(settings, backbone=None if model is None else model.backbone)
  check_config(path, {'method': settings}, plain({'method': settings_of(method)}))
  return method


def weights_from(path: pathlib.Path, source: Any, backbone: Backbone) -> Pretrained:
  """The weights of a backbone, from where a record says that they are.

  Args:
    path: of the file with the record, for messages.
    source: as `WeightsIdentity.source`.
    backbone: that they are of.

  Raises:
    NotRemade: a ValueError, if the record does not say where they are, or they are not there.
  """
  if not isinstance(source, Mapping) or backbone.family not in FAMILIES:
    raise NotRemade(
      f'{path} does not say where the weights of {backbone.name} are: give the model, as in '
      'model=Pretrained(backbone, params)'
    )
  if 'random' in source:
    params = backbone.init(jax.random.key(source['random']))
    identity = {'backbone_sha256': f'random, seed {source["random"]}'}
    return Pretrained(backbone, params, None, WeightsIdentity(identity, params, source))
  file = local_path(source['file']) if 'file' in source else find_card(source['card']).file
  if file is None or not file.is_file():
    raise NotRemade(
      f'the weights of {backbone.name} are no longer at {file}: give the model, as in '
      'model=pretrained(card, weights)'
    )
  found = FAMILIES[backbone.family].load(file, backbone)
  identity = WeightsIdentity({'backbone_sha256': found.sha256}, found.params, source)
  return Pretrained(backbone, found.params, found.head, identity)


def check_weights(path: pathlib.Path, expected: Any, model: Pretrained) -> None:
  """Raises ValueError for a model with other weights than were learned on, by their digest."""
  identity = model.identity
  here = identity.get('backbone_sha256')
  if here is None or (isinstance(identity, WeightsIdentity) and not identity.is_of(model.params)):
    here = tree_sha256(model.params)
  # Weights that were read from a file are known by its digest, others by that of their tree.
  if expected != here and expected != tree_sha256(model.params):
    raise ValueError(
      f'{path} is of other weights: backbone_sha256 there {expected}, of the model {here}'
    )


def learned(
  what: str, stored: Mapping[str, Any], method: ContinualMethod, frozen: Params
) -> Learned:
  """Arrays by their paths as the method carries them.

  Args:
    what: holds them, for messages.
    stored: arrays by path, as in `params/head/kernel`; keys are their data.
    method: any.
    frozen: the backbone's weights, or their shapes.

  Raises:
    ValueError: if they are not just those that the method carries; names some.
  """
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), frozen)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params, memory = jax.eval_shape(method.init, key, shapes)
  step: Any = jax.ShapeDtypeStruct((), np.int32)
  like = Learned(params, memory, jax.eval_shape(lambda: no_task(method.capacity)), step)
  wanted = dict(map(leaf_of, named_leaves(like)))
  check_leaves(what, wanted, dict(leaf_of(named) for named in stored.items()))

  def taken(name: str, leaf: Any) -> Any:
    typed = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(stored[name]) if typed else stored[name]

  return map_named(taken, like)


def placed(layout: Layout, tree: Any) -> Any:
  """A tree on the devices of a layout, by its rules."""
  return place(tree, tree_shardings(layout, tree))
