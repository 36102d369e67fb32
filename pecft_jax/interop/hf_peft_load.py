"""Adapters of huggingface/peft as transforms and deltas."""

import collections
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.checkpoint import read_tensors
from pecft_jax.backbones.core.finite import check_finite
from pecft_jax.continual.core import abstract_delta
from pecft_jax.interop.base import check_base
from pecft_jax.interop.hf_layers import of_length
from pecft_jax.interop.hf_peft_config import read_config
from pecft_jax.interop.hf_peft_save import CONFIG, PREFIX, SHARED, TENSORS
from pecft_jax.interop.hf_type import LAYERED, Found, HfType, Model, Place
from pecft_jax.interop.hf_types import REFUSED, TYPES
from pecft_jax.interop.modules import Module, Naming, attention_name, naming_of
from pecft_jax.local import local_path
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.typing import Adapted, Backbone, Delta, LinearHead, Params, PeftTransform

_Parts = dict[str, dict[str, np.ndarray]]


def load_hf_peft(
  directory: str | pathlib.Path,
  backbone: Backbone,
  *,
  naming: Naming | None = None,
  params: Params | None = None,
  any_base: bool = False,
) -> Adapted:
  """Reads a LoRA, rsLoRA, DoRA or (IA)^3 adapter onto a backbone.

  A layer that holds q, k and v becomes three sites, which share A.
  Where layers differ in scale, the difference is multiplied into B.

  Args:
    directory: with `adapter_config.json` and `adapter_model.safetensors`.
    backbone: the model that it was trained on.
    naming: of its layers there; by the backbone's family if None.
    params: the backbone's weights; where given, and where the adapter names its base
      (`save_hf_peft` does), they must be those.
    any_base: load it onto other weights, too.

  Returns:
    Transform, delta, and the classifier that was saved along, or None.

  Raises:
    ValueError: if the files are not there or not whole, the adapter is of
      another kind, an entry of its configuration is not understood, a tensor
      is not finite or does not fit the configuration, or the backbone has no
      such layers, other sizes, or other weights; names the file and the entry.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.typing import Adapted
  >>> model = pretrained('vit_glyphs16')
  >>> peft = lora(r'attn/q$', rank=2)
  >>> delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> adapted = Adapted(peft, delta, head=None)
  >>> from pecft_jax.interop import save_hf_peft
  >>> save_hf_peft('adapter', model.backbone, adapted, model.params)
  >>> again = load_hf_peft('adapter', model.backbone, params=model.params)
  >>> again.delta['block_0/attn/q'].a.shape, again.head
  ((96, 2), None)
  """
  directory = local_path(directory)
  naming = naming_of(backbone) if naming is None else naming
  config = read_config(directory / CONFIG, TYPES, REFUSED)
  tensors = read_tensors(directory / TENSORS)
  try:
    if params is not None and not any_base:
      check_base(directory, backbone, params)
    return _adapted(TYPES[config['peft_type']], config, tensors, Model(backbone, naming, params))
  except ValueError as error:
    raise ValueError(f'{directory}: {error}') from error


def _adapted(
  kind: HfType, config: Mapping[str, Any], tensors: Mapping[str, Any], model: Model
) -> Adapted:
  backbone, naming, _ = model
  parts, shared = _sorted(tensors, kind)
  head = _head(naming.head, parts.pop(naming.head, None), backbone.width)
  places = _places(kind.kind, backbone, naming) if parts else {}
  if unknown := sorted(name for name in parts if _site_name(name, places) is None):
    raise ValueError(
      f'it adapts {shortened(unknown)}, but {backbone.name} has no such layers; {kind.kind} '
      f'layers: {shortened(sorted(places))}'
    )
  if not parts and (kind.kind in LAYERED or kind.shared is None):
    raise ValueError('it adapts no layer')
  several = collections.Counter(_site_name(name, places) for name in parts)
  if twice := sorted(str(name) for name, count in several.items() if count > 1):
    raise ValueError(f'it has the layers {shortened(twice)} twice, with and without a prefix')
  at = {name: places[str(_site_name(name, places))] for name in parts}
  peft, delta = kind.read(Found(config, parts, at, shared), model)
  _check(kind, backbone, peft, delta)
  return Adapted(peft, delta, head)


def _site_name(name: str, places: Mapping[str, Any]) -> str | None:
  """The layer of a name; a model saved without its language-model head has no such prefix."""
  return next((each for each in (name, f'model.{name}') if each in places), None)


def _places(kind: str, backbone: Backbone, naming: Naming) -> dict[str, list[Place]]:
  """Sites or tables by layer of the other library, each with its third of the layer."""
  found: dict[str, list[Place]] = {}
  if kind == 'table':
    shapes = jax.eval_shape(backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
    for path, leaf in named_leaves(shapes):
      site, _, name = path.rpartition('/')
      if name == 'table':
        found.setdefault(naming.of(site).name, []).append(Place(None, path, leaf.shape))
  for spec in backbone.sites if kind in ('linear', 'norm', 'attend') else ():
    path = spec.site.path
    if spec.site.kind == kind and path not in naming.convolutions:
      attends = kind == 'attend'
      module = Module(attention_name(naming, path), None) if attends else naming.of(path)
      place = Place(module.third, path, tuple(spec.args[1].shape))
      found.setdefault(module.name, []).append(place)
  return found


def _sorted(
  tensors: Mapping[str, np.ndarray], kind: HfType
) -> tuple[_Parts, dict[str, np.ndarray]]:
  """Tensors by the layer that they belong to, and those that all layers share, in float32."""
  parts: _Parts = {}
  shared: dict[str, np.ndarray] = {}
  bare = kind.kind not in LAYERED and kind.shared is not None
  for name, tensor in tensors.items():
    own = re.fullmatch(
      rf'{re.escape(SHARED if bare else PREFIX)}(.+?)\.({kind.suffixes}|weight|bias)', name
    )
    common = kind.shared and re.fullmatch(rf'({re.escape(SHARED)})?({kind.shared})', name)
    if not own and not common:
      raise ValueError(f'{name} is no tensor of an adapter of type {kind.peft_type}')
    if own and own[2] in kind.integers:
      if not np.issubdtype(tensor.dtype, np.integer):
        raise ValueError(f'{name} has dtype {tensor.dtype}, expected whole numbers')
      parts.setdefault(own[1], {})[own[2]] = tensor
      continue
    check_finite(name, tensor)
    if own:
      parts.setdefault(own[1], {})[own[2]] = np.asarray(tensor, np.float32)
    elif common:
      shared[common[2]] = np.asarray(tensor, np.float32)
  return parts, shared


def _head(name: str, tensors: Mapping[str, np.ndarray] | None, width: int) -> LinearHead | None:
  if tensors is None:
    return None
  if not {'weight'} <= tensors.keys() <= {'weight', 'bias'}:
    raise ValueError(f'{name}: expected weight and bias of a classifier, got {sorted(tensors)}')
  weight = tensors['weight']
  if weight.ndim != 2 or weight.shape[1] != width:
    raise ValueError(f'{name}.weight: expected shape [classes, {width}], got {weight.shape}')
  bias = of_length(name, tensors.get('bias', np.zeros(len(weight), np.float32)), len(weight))
  return LinearHead(jnp.asarray(weight.T), jnp.asarray(bias))


def _check(kind: HfType, backbone: Backbone, peft: PeftTransform, delta: Delta) -> None:
  """Checks a delta against the one that its transform would make; ranks may differ."""
  want = dict(named_leaves(abstract_delta(backbone, peft)))
  for name, leaf in named_leaves(delta):
    axis = kind.ranked.get(name.rpartition('/')[2])
    without = lambda array, axis=axis: [n for i, n in enumerate(array.shape) if i != axis]
    if without(leaf) != without(want[name]):
      raise ValueError(
        f'{name} has shape {list(leaf.shape)}, {backbone.name} expects '
        f'{list(want[name].shape)}, whatever the rank'
      )
