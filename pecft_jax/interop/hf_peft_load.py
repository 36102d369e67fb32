"""Adapters of huggingface/peft as transforms and deltas."""

import collections
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.families.vit.names import read_tensors
from pecft_jax.continual.core import Head, abstract_delta
from pecft_jax.interop.hf_peft_save import CONFIG, PREFIX, TENSORS
from pecft_jax.interop.modules import Naming, naming_of
from pecft_jax.local import local_path
from pecft_jax.paths import named_leaves, shortened
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.dora import DoraDelta, dora
from pecft_jax.peft.lowrank.lora import LoraDelta, lora, lora_scale
from pecft_jax.peft.scaling.ia3 import Ia3Delta, scaled_inputs, scaled_outputs
from pecft_jax.typing import Adapted, Backbone, Delta, PeftTransform

# What would change the forward pass in ways that are not read here.
_REFUSED = {
  'bias': ('none', None),
  'fan_in_fan_out': (False, None),
  'lora_bias': (False, None),
  'use_qalora': (False, None),
  'use_bdlora': (None, False),
  'alora_invocation_tokens': (None,),
  'layer_replication': (None,),
  'target_parameters': (None, []),
  'trainable_token_indices': (None,),
}

_Parts = dict[str, dict[str, np.ndarray]]


def load_hf_peft(
  directory: str | pathlib.Path, backbone: Backbone, *, naming: Naming | None = None
) -> Adapted:
  """Reads a LoRA, rsLoRA, DoRA or (IA)^3 adapter onto a backbone.

  Of a layer that holds q, k and v each becomes a site of its own; they share A.
  Layers of other scales than the most have theirs in B.

  Args:
    directory: with `adapter_config.json` and `adapter_model.safetensors`.
    backbone: the model that it was trained on.
    naming: of its layers there; by the backbone's inputs if None.

  Returns:
    Transform, delta, and the classifier that was saved along, or None.

  Raises:
    ValueError: if the files are not there or not whole, the adapter is of
      another kind, or the backbone has no such layers or other sizes.
  """
  directory = local_path(directory)
  naming = naming_of(backbone) if naming is None else naming
  config = _config(directory / CONFIG)
  kind = config.get('peft_type')
  if kind not in ('LORA', 'IA3'):
    raise ValueError(f'{directory}: expected an adapter of type LORA or IA3, got {kind!r}')
  for key, allowed in _REFUSED.items():
    if key in config and config[key] not in allowed:
      raise ValueError(f'{directory}: {key}={config[key]!r} is not supported, only {allowed[0]!r}')
  parts = _by_module(read_tensors(directory / TENSORS))
  head = _head(parts.pop(naming.head, None))
  sites = _sites(backbone, naming)
  # A model saved without its language-model head has no such prefix.
  parts = {
    n if n in sites or f'model.{n}' not in sites else f'model.{n}': p for n, p in parts.items()
  }
  if unknown := sorted(parts.keys() - sites.keys()):
    raise ValueError(
      f'{directory} adapts {shortened(unknown)}, which {backbone.name} has not; linear layers: '
      f'{shortened(sorted(sites))}'
    )
  if not parts:
    raise ValueError(f'{directory} adapts no layer')
  peft, delta = (_lora if kind == 'LORA' else _ia3)(config, parts, sites)
  _check(directory, backbone, peft, delta)
  return Adapted(peft, delta, head)


def _lora(
  config: Mapping[str, Any], parts: _Parts, sites: Mapping[str, Any]
) -> tuple[PeftTransform, Delta]:
  rank, alpha = (_entry(config, key) for key in ('r', 'lora_alpha'))
  stabilised = bool(config.get('use_rslora'))
  common = lora_scale(rank, alpha, rank_stabilised=stabilised)
  delta: Delta = {}
  for name, tensors in parts.items():
    a, b = (_needed(name, tensors, f'lora_{letter}.weight').T for letter in 'AB')
    own = _pattern(config.get('alpha_pattern'), name, alpha)
    # As there: a rank of its own changes the scale, too.
    own_rank = _pattern(config.get('rank_pattern'), name, rank)
    scale = own / (math.sqrt(own_rank) if stabilised else own_rank)
    b = b * np.float32(scale / common)
    magnitude = tensors.get('lora_magnitude_vector')
    if bool(config.get('use_dora')) != (magnitude is not None):
      raise ValueError(
        f'{name}: use_dora is {config.get("use_dora")}, but its tensors say otherwise'
      )
    for path, cut in _cuts(sites[name], b.shape[1]):
      if magnitude is not None:
        own_part = magnitude.reshape(-1)[cut]
        delta[path] = DoraDelta(jnp.asarray(a), jnp.asarray(b[:, cut]), jnp.asarray(own_part))
        continue
      # Where q, k and v were adapted apart, the others' rows are zeros.
      rows = b[:, cut].any(1) if b.any() else np.ones(len(b), bool)
      if rows.any():
        delta[path] = LoraDelta(jnp.asarray(a[:, rows]), jnp.asarray(b[rows, cut]))
  # With alpha / r the same scale, whatever it was there.
  most = collections.Counter(leaf.a.shape[1] for leaf in delta.values()).most_common(1)[0][0]
  pattern, alpha = _exactly(delta), common * most
  if config.get('use_dora'):
    return dora(pattern, most, alpha), delta
  return lora(pattern, most, alpha, dropout=config.get('lora_dropout') or 0.0), delta


def _ia3(
  config: Mapping[str, Any], parts: _Parts, sites: Mapping[str, Any]
) -> tuple[PeftTransform, Delta]:
  del config
  delta: dict[str, Delta] = {'outputs': {}, 'inputs': {}}
  for name, tensors in parts.items():
    scale = _needed(name, tensors, 'ia3_l')
    if scale.shape[0] == 1:  # [1, d_in] of a feed-forward module, otherwise [d_out, 1].
      if len(sites[name]) > 1:
        raise ValueError(f'{name}: the inputs of q, k and v in one layer cannot be scaled here')
      delta['inputs'][sites[name][0][1]] = Ia3Delta(jnp.asarray(scale[0]))
      continue
    for path, cut in _cuts(sites[name], len(scale)):
      delta['outputs'][path] = Ia3Delta(jnp.asarray(scale[cut, 0]))
  factories = {'outputs': scaled_outputs, 'inputs': scaled_inputs}
  delta = {part: leaves for part, leaves in delta.items() if leaves}
  return chain(**{part: factories[part](_exactly(leaves)) for part, leaves in delta.items()}), delta


def _cuts(places: list[tuple[int | None, str]], width: int) -> list[tuple[str, slice]]:
  """Each site of a layer with its part of the outputs."""
  each = width if places[0][0] is None else width // 3
  return [(path, slice((third or 0) * each, ((third or 0) + 1) * each)) for third, path in places]


def _sites(backbone: Backbone, naming: Naming) -> dict[str, list[tuple[int | None, str]]]:
  """Sites by module, with the third of it that each one is."""
  found: dict[str, list[tuple[int | None, str]]] = {}
  for spec in backbone.sites:
    if spec.site.kind == 'linear' and spec.site.path not in naming.convolutions:
      module = naming.of(spec.site.path)
      found.setdefault(module.name, []).append((module.third, spec.site.path))
  return found


def _by_module(tensors: Mapping[str, np.ndarray]) -> _Parts:
  """Tensors by the layer that they belong to."""
  found: _Parts = {}
  pattern = r'(.+?)\.(lora_[AB]\.weight|lora_magnitude_vector|ia3_l|weight|bias)'
  for name, tensor in tensors.items():
    match = re.fullmatch(pattern, name.removeprefix(PREFIX))
    if match is None:
      raise ValueError(f'{name} is no tensor of a LoRA, DoRA or (IA)^3 adapter')
    found.setdefault(match[1], {})[match[2]] = np.asarray(tensor, np.float32)
  return found


def _head(tensors: Mapping[str, np.ndarray] | None) -> Head | None:
  if tensors is None:
    return None
  kernel = jnp.asarray(_needed('the classifier', tensors, 'weight').T)
  bias = tensors.get('bias')
  return Head(kernel, jnp.zeros(kernel.shape[1]) if bias is None else jnp.asarray(bias))


def _needed(name: str, tensors: Mapping[str, np.ndarray], part: str) -> np.ndarray:
  if part not in tensors:
    raise ValueError(f'{name} has no {part}; it has {sorted(tensors)}')
  return tensors[part]


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
  """The value of the first pattern that a name ends with, at a dot."""
  for pattern, value in (patterns or {}).items():
    if re.fullmatch(rf'(.*\.)?({pattern})', name):
      return value
  return default


def _entry(config: Mapping[str, Any], key: str) -> Any:
  if not isinstance(config.get(key), int | float):
    raise ValueError(f'{CONFIG}: expected a number for {key}, got {config.get(key)!r}')
  return config[key]


def _exactly(delta: Delta) -> str:
  return f'^({"|".join(map(re.escape, delta))})$'


def _check(directory: pathlib.Path, backbone: Backbone, peft: PeftTransform, delta: Delta) -> None:
  """Holds a delta against the one that its transform would make; ranks may differ."""
  ranked = lambda name: name.rpartition('/')[2] in ('a', 'b')
  want = dict(named_leaves(abstract_delta(backbone, peft)))
  for name, leaf in named_leaves(delta):
    shape, other = leaf.shape, want[name].shape
    if ranked(name):
      side = 0 if name.endswith('/a') else 1
      shape, other = shape[side : side + 1], other[side : side + 1]
    if shape != other:
      raise ValueError(
        f'{directory}: {name} has shape {list(leaf.shape)}, {backbone.name} expects '
        f'{list(want[name].shape)}, whatever the rank'
      )


def _config(path: pathlib.Path) -> dict[str, Any]:
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} is no configuration of an adapter: {error}') from error
  if not isinstance(config, dict):
    raise ValueError(f'{path} is no configuration of an adapter: expected an object')
  return config
