"""Adapters of huggingface/peft as transforms and deltas."""

import collections
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.checkpoint import read_tensors
from pecft_jax.backbones.core.finite import check_finite
from pecft_jax.continual.core import abstract_delta
from pecft_jax.interop.base import check_base
from pecft_jax.interop.hf_peft_config import lora_config, read_config, scale_of, scales_inputs
from pecft_jax.interop.hf_peft_save import CONFIG, PREFIX, TENSORS
from pecft_jax.interop.modules import Naming, naming_of
from pecft_jax.local import local_path
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.dora import DoraDelta, dora
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.peft.scaling.ia3 import Ia3Delta, scaled_inputs, scaled_outputs
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
  config = read_config(directory / CONFIG)
  tensors = read_tensors(directory / TENSORS)
  try:
    if params is not None and not any_base:
      check_base(directory, backbone, params)
    return _adapted(config, tensors, backbone, naming)
  except ValueError as error:
    raise ValueError(f'{directory}: {error}') from error


def _adapted(
  config: Mapping[str, Any], tensors: Mapping[str, Any], backbone: Backbone, naming: Naming
) -> Adapted:
  parts = _by_module(tensors)
  head = _head(naming.head, parts.pop(naming.head, None), backbone.width)
  sites = _sites(backbone, naming)
  if unknown := sorted(name for name in parts if _site_name(name, sites) is None):
    raise ValueError(
      f'it adapts {shortened(unknown)}, but {backbone.name} has no such layers; linear layers: '
      f'{shortened(sorted(sites))}'
    )
  if not parts:
    raise ValueError('it adapts no layer')
  several = collections.Counter(_site_name(name, sites) for name in parts)
  if twice := sorted(str(name) for name, count in several.items() if count > 1):
    raise ValueError(f'it has the layers {shortened(twice)} twice, with and without a prefix')
  peft, delta = (_lora if config['peft_type'] == 'LORA' else _ia3)(config, parts, sites)
  _check(backbone, peft, delta)
  return Adapted(peft, delta, head)


def _site_name(name: str, sites: Mapping[str, Any]) -> str | None:
  """The layer of a name; a model saved without its language-model head has no such prefix."""
  return next((each for each in (name, f'model.{name}') if each in sites), None)


def _lora(
  config: Mapping[str, Any], parts: _Parts, sites: Mapping[str, Any]
) -> tuple[PeftTransform, Delta]:
  settings = lora_config(config)
  root = math.sqrt(settings.rank) if settings.stabilised else settings.rank
  # The ratio of a layer's scale to the common one goes into its B; so does the sign.
  common = settings.alpha / root if settings.alpha > 0 else 1.0
  expected = ('lora_A.weight', 'lora_B.weight', *(('lora_magnitude_vector',) * settings.dora))
  delta: Delta = {}
  for name, tensors in parts.items():
    a, b, *magnitude = _exactly_parts(name, tensors, expected, config)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
      raise ValueError(
        f'{name}: expected lora_A [r, in] and lora_B [out, r], got {a.shape} and {b.shape}'
      )
    a, b = a.T, b.T * np.float32(scale_of(settings, name, len(a)) / common)
    check_finite(f'{name}.lora_B.weight times its scale', b)
    at = sites[str(_site_name(name, sites))]
    for path, cut in _cuts(name, at, b.shape[1]):
      if magnitude:
        own_part = _of_length(name, magnitude[0], b.shape[1])[cut]
        delta[path] = DoraDelta(jnp.asarray(a), jnp.asarray(b[:, cut]), jnp.asarray(own_part))
        continue
      # Where not all of q, k and v were adapted, the rows of the others are zeros.
      rows = b[:, cut].any(1) if b.any() else np.ones(len(b), bool)
      if rows.any():
        delta[path] = LoraDelta(jnp.asarray(a[:, rows]), jnp.asarray(b[rows, cut]))
  # alpha / r is then the scale, whether or not it was stabilised in the file.
  most = collections.Counter(leaf.a.shape[1] for leaf in delta.values()).most_common(1)[0][0]
  pattern, alpha = _pattern_of(delta), common * most
  if settings.dora:
    return dora(pattern, most, alpha), delta
  return lora(pattern, most, alpha, dropout=settings.dropout), delta


def _ia3(
  config: Mapping[str, Any], parts: _Parts, sites: Mapping[str, Any]
) -> tuple[PeftTransform, Delta]:
  delta: dict[str, Delta] = {'outputs': {}, 'inputs': {}}
  for name, tensors in parts.items():
    (scale,) = _exactly_parts(name, tensors, ('ia3_l',), config)
    # [1, d_in] of a feed-forward module, otherwise [d_out, 1].
    if scale.ndim != 2 or 1 not in scale.shape:
      raise ValueError(f'{name}: expected ia3_l [out, 1] or [1, in], got {scale.shape}')
    inputs = scale.shape[0] == 1
    if scales_inputs(config, name) not in (None, inputs):
      raise ValueError(
        f'{name}: feedforward_modules is {config["feedforward_modules"]}, but ia3_l has shape '
        f'{scale.shape}'
      )
    at = sites[str(_site_name(name, sites))]
    if inputs:
      if len(at) > 1:
        raise ValueError(f'{name}: the inputs of q, k and v in one layer cannot be scaled here')
      delta['inputs'][at[0][1]] = Ia3Delta(jnp.asarray(scale[0]))
      continue
    for path, cut in _cuts(name, at, len(scale)):
      delta['outputs'][path] = Ia3Delta(jnp.asarray(scale[cut, 0]))
  factories = {'outputs': scaled_outputs, 'inputs': scaled_inputs}
  delta = {part: leaves for part, leaves in delta.items() if leaves}
  transforms = {part: factories[part](_pattern_of(leaves)) for part, leaves in delta.items()}
  return chain(**transforms), delta


def _cuts(name: str, places: list[tuple[int | None, str]], width: int) -> list[tuple[str, slice]]:
  """Each site of a layer with its part of the outputs."""
  if places[0][0] is None:
    return [(path, slice(width)) for _, path in places]
  if width % 3:
    raise ValueError(f'{name} has {width} outputs: expected as many for each of q, k and v')
  each = width // 3
  return [(path, slice((third or 0) * each, ((third or 0) + 1) * each)) for third, path in places]


def _sites(backbone: Backbone, naming: Naming) -> dict[str, list[tuple[int | None, str]]]:
  """Sites by module, each with its third of the module."""
  found: dict[str, list[tuple[int | None, str]]] = {}
  for spec in backbone.sites:
    if spec.site.kind == 'linear' and spec.site.path not in naming.convolutions:
      module = naming.of(spec.site.path)
      found.setdefault(module.name, []).append((module.third, spec.site.path))
  return found


def _by_module(tensors: Mapping[str, np.ndarray]) -> _Parts:
  """Tensors by the layer that they belong to, in float32."""
  found: _Parts = {}
  pattern = r'(.+?)\.(lora_[AB]\.weight|lora_magnitude_vector|ia3_l|weight|bias)'
  for name, tensor in tensors.items():
    match = re.fullmatch(re.escape(PREFIX) + pattern, name)
    if match is None:
      raise ValueError(f'{name} is no tensor of a LoRA, DoRA or (IA)^3 adapter')
    check_finite(name, tensor)
    found.setdefault(match[1], {})[match[2]] = np.asarray(tensor, np.float32)
  return found


def _head(name: str, tensors: Mapping[str, np.ndarray] | None, width: int) -> LinearHead | None:
  if tensors is None:
    return None
  if not {'weight'} <= tensors.keys() <= {'weight', 'bias'}:
    raise ValueError(f'{name}: expected weight and bias of a classifier, got {sorted(tensors)}')
  weight = tensors['weight']
  if weight.ndim != 2 or weight.shape[1] != width:
    raise ValueError(f'{name}.weight: expected shape [classes, {width}], got {weight.shape}')
  bias = _of_length(name, tensors.get('bias', np.zeros(len(weight), np.float32)), len(weight))
  return LinearHead(jnp.asarray(weight.T), jnp.asarray(bias))


def _exactly_parts(
  name: str, tensors: Mapping[str, np.ndarray], expected: Sequence[str], config: Mapping[str, Any]
) -> list[np.ndarray]:
  """The tensors of a layer, in the order expected; no others may be there."""
  if tensors.keys() != set(expected):
    kind = f'use_dora={config["use_dora"]}' if config.get('use_dora') else config['peft_type']
    raise ValueError(
      f'{name}: expected {" and ".join(expected)} ({kind}), got {" and ".join(sorted(tensors))}'
    )
  return [tensors[part] for part in expected]


def _of_length(name: str, vector: np.ndarray, length: int) -> np.ndarray:
  if vector.shape != (length,):
    raise ValueError(f'{name}: expected a vector of {length}, got shape {vector.shape}')
  return vector


def _pattern_of(delta: Delta) -> str:
  return f'^({"|".join(map(re.escape, delta))})$'


def _check(backbone: Backbone, peft: PeftTransform, delta: Delta) -> None:
  """Checks a delta against the one that its transform would make; ranks may differ."""
  ranked = lambda name: name.rpartition('/')[2] in ('a', 'b')
  want = dict(named_leaves(abstract_delta(backbone, peft)))
  for name, leaf in named_leaves(delta):
    shape, other = leaf.shape, want[name].shape
    if ranked(name):
      side = 0 if name.endswith('/a') else 1
      shape, other = shape[side : side + 1], other[side : side + 1]
    if shape != other:
      raise ValueError(
        f'{name} has shape {list(leaf.shape)}, {backbone.name} expects '
        f'{list(want[name].shape)}, whatever the rank'
      )
