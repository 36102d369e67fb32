"""Adapters of huggingface/peft: `adapter_config.json` and `adapter_model.safetensors`.

That format has A and B transposed, names of PyTorch layers, and q, k and v possibly in one layer.
Written for LoRA, rsLoRA, DoRA and (IA)^3, with the classifier among the modules to save.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pecft_jax.interop.base import write_base
from pecft_jax.interop.modules import Naming, naming_of
from pecft_jax.interop.pieces import Piece, pieces_of
from pecft_jax.local import local_path
from pecft_jax.peft.lowrank.dora import DoraDelta
from pecft_jax.peft.scaling.ia3 import Ia3Delta
from pecft_jax.peft.weights import read
from pecft_jax.typing import Adapted, Backbone, Params

CONFIG, TENSORS, MODEL_CARD = 'adapter_config.json', 'adapter_model.safetensors', 'README.md'
PREFIX = 'base_model.model.'
_DEFAULTS = {
  'base_model_name_or_path': None,
  'fan_in_fan_out': False,
  'inference_mode': True,
  'task_type': None,
}

_NAMES = ('target_modules', 'feedforward_modules')

_Modules = dict[str, list[tuple[int | None, Piece]]]


def save_hf_peft(
  directory: str | pathlib.Path,
  backbone: Backbone,
  adapted: Adapted,
  frozen: Params,
  *,
  naming: Naming | None = None,
  card: str = '',
  facts: Mapping[str, Any] | None = None,
) -> None:
  """Writes an adapter that `peft.PeftModel.from_pretrained(model, directory)` reads.

  Args:
    directory: made if it does not exist; must be empty.
    backbone: that is adapted.
    adapted: transform, delta and classifier; no classifier is written for None.
    frozen: the backbone's weights, whose norms DoRA needs where q, k and v are
      one layer and not all of them are adapted.
    naming: of the layers of the model that the adapter is for: `TIMM_VIT` or
      `LLAMA` by the backbone's family, or one of your own.
    card: text of the model card, its README.md.
    facts: further entries of `pecft.json`, as JSON; it names the base by the digest of `frozen`.

  Raises:
    ValueError: if the directory is not empty, or the transform has no form there.

  >>> import jax
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import lora
  >>> from pecft_jax.typing import Adapted
  >>> model = pretrained('vit_glyphs16')
  >>> peft = lora(r'attn/q$', rank=2)
  >>> delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> adapted = Adapted(peft, delta, head=None)
  >>> save_hf_peft('adapter', model.backbone, adapted, model.params)
  >>> json.loads(pathlib.Path('adapter/adapter_config.json').read_text())['target_modules']
  ['qkv']
  """
  from safetensors.numpy import save

  directory = local_path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f'{directory} is there already: give a new or empty directory')
  naming = naming_of(backbone) if naming is None else naming
  pieces = pieces_of(adapted.peft, adapted.delta)
  kinds = {type(piece.leaf) for piece in pieces}
  if len(kinds) > 1:
    names = sorted(kind.__name__ for kind in kinds)
    raise ValueError(f'huggingface/peft has no mixture of {names} in one adapter: save one each')
  modules: _Modules = {}
  for piece in pieces:
    if piece.path in naming.convolutions:
      raise ValueError(f'{piece.path!r} is no linear layer of {naming.model}: leave it out')
    module = naming.of(piece.path)
    modules.setdefault(module.name, []).append((module.third, piece))
  write = _ia3 if kinds == {Ia3Delta} else _lora
  tensors, config = write(modules, frozen)
  if _last_part_is_enough(modules, config.get('feedforward_modules', ()), backbone, naming):
    config |= {key: _last_parts(config[key]) for key in _NAMES if key in config}
  config['modules_to_save'] = None if adapted.head is None else [naming.head]
  if adapted.head is not None:
    tensors[f'{naming.head}.weight'] = np.asarray(adapted.head.kernel).T
    tensors[f'{naming.head}.bias'] = np.asarray(adapted.head.bias)
  directory.mkdir(parents=True, exist_ok=True)
  contiguous = {PREFIX + n: np.ascontiguousarray(a, np.float32) for n, a in tensors.items()}
  (directory / TENSORS).write_bytes(save(contiguous, metadata={'format': 'pt'}))
  (directory / CONFIG).write_text(json.dumps({**_DEFAULTS, **config}, indent=2) + '\n')
  write_base(directory, backbone, frozen, {} if facts is None else facts)
  if card:
    (directory / MODEL_CARD).write_text(card, encoding='utf-8')


def _lora(modules: _Modules, frozen: Params) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Tensors by name, and the configuration, of LoRA and DoRA."""
  # One scale for all, that of the first site; the ratios to it go into B of the others.
  scale = next(iter(modules.values()))[0][1].scale
  dora = False
  tensors, ranks = {}, {}
  for name, parts in modules.items():
    a = np.concatenate([np.asarray(piece.leaf.a) for _, piece in parts], 1)
    width = parts[0][1].leaf.b.shape[1]
    thirds = 1 if parts[0][0] is None else 3
    b = np.zeros((a.shape[1], thirds, width), np.float32)
    row = 0
    for third, piece in parts:
      own = np.asarray(piece.leaf.b) * np.float32(piece.scale / scale)
      b[row : row + len(own), third or 0] = own
      row += len(own)
    tensors[f'{name}.lora_A.weight'] = a.T
    tensors[f'{name}.lora_B.weight'] = b.reshape(len(b), -1).T
    ranks[name] = a.shape[1]
    if isinstance(parts[0][1].leaf, DoraDelta):
      dora = True
      tensors[f'{name}.lora_magnitude_vector'] = _magnitudes(name, parts, frozen)
  rank = collections.Counter(ranks.values()).most_common(1)[0][0]
  others = {name: r for name, r in ranks.items() if r != rank}
  return tensors, {
    'peft_type': 'LORA',
    'target_modules': sorted(modules),
    'r': rank,
    'lora_alpha': _whole(scale * rank),
    'rank_pattern': others,
    'alpha_pattern': {name: _whole(scale * r) for name, r in others.items()},
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': dora,
  }


def _magnitudes(name: str, parts: Sequence[tuple[int | None, Piece]], frozen: Params) -> np.ndarray:
  """[d_out] of a layer; for a third that is not adapted, the column norms of its weight."""
  sites = {third: np.asarray(piece.leaf.magnitude) for third, piece in parts}
  if len(sites) < len(parts):
    raise ValueError(f'two DoRAs act on {name}: huggingface/peft knows one a layer')
  if None in sites:
    return sites[None]
  stem = parts[0][1].path.rpartition('/')[0]
  norms = lambda w: np.linalg.norm(np.asarray(w, np.float32), axis=0)
  return np.concatenate([
    sites[i] if i in sites else norms(read(frozen, f'{stem}/{letter}').main)
    for i, letter in enumerate('qkv')
  ])  # fmt: skip


def _ia3(modules: _Modules, frozen: Params) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Tensors by name, and the configuration, of (IA)^3."""
  del frozen
  tensors, feedforward = {}, []
  for name, parts in modules.items():
    inputs = {piece.inputs for _, piece in parts}
    if len(inputs) > 1 or (True in inputs and parts[0][0] is not None):
      raise ValueError(
        f'huggingface/peft scales either all inputs of {name} or its outputs, not parts or both'
      )
    scales: dict[int, np.ndarray] = {}
    for third, piece in parts:
      scales[third or 0] = scales.get(third or 0, 1) * np.asarray(piece.leaf.scale)
    if True in inputs:
      feedforward.append(name)
      tensors[f'{name}.ia3_l'] = scales[0][None, :]
      continue
    whole = scales if parts[0][0] is None else {**dict.fromkeys(range(3)), **scales}
    width = len(next(iter(scales.values())))
    ones = np.ones(width, np.float32)
    rows = [ones if part is None else part for part in whole.values()]
    tensors[f'{name}.ia3_l'] = np.concatenate(rows)[:, None]
  return tensors, {
    'peft_type': 'IA3',
    'target_modules': sorted(modules),
    'feedforward_modules': sorted(feedforward),
  }


def _last_part_is_enough(
  modules: Mapping[str, Any], feedforward: Sequence[str], backbone: Backbone, naming: Naming
) -> bool:
  """Whether the last parts of the names, the usual short form, match the same layers."""
  linear = (spec.site.path for spec in backbone.sites if spec.site.kind == 'linear')
  short, inputs = set(_last_parts(modules)), set(_last_parts(feedforward))
  there = {name for path in linear if set(_last_parts([name := naming.of(path).name])) & short}
  outputs = set(_last_parts(modules.keys() - set(feedforward)))
  return there == set(modules) and naming.head not in short and not inputs & outputs


def _last_parts(names: Iterable[str]) -> list[str]:
  return sorted({name.rpartition('.')[2] for name in names})


def _whole(alpha: float) -> float | int:
  """As an integer where the value is whole, as the format expects."""
  return round(alpha) if abs(alpha - round(alpha)) < 1e-6 * abs(alpha) else alpha
