"""Adapters of huggingface/peft: `adapter_config.json` and `adapter_model.safetensors`.

That format has matrices transposed, names of PyTorch layers, and q, k and v possibly in one layer.
What a type of adapter writes is in its file in `types/`; names, the classifier among the modules to
save, and files are here.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pecft_jax.interop.base import write_base
from pecft_jax.interop.hf_type import LAYERED, HfType, Layer, Model, Part, Written
from pecft_jax.interop.hf_types import TYPES
from pecft_jax.interop.modules import Naming, naming_of
from pecft_jax.interop.pieces import Piece, pieces_of
from pecft_jax.local import local_path
from pecft_jax.typing import Adapted, Backbone, Params

CONFIG, TENSORS, MODEL_CARD = 'adapter_config.json', 'adapter_model.safetensors', 'README.md'
SHARED = 'base_model.'
PREFIX = 'base_model.model.'
_DEFAULTS = {'base_model_name_or_path': None, 'inference_mode': True, 'task_type': None}
_NAMES = ('target_modules', 'feedforward_modules')


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
  kinds = {leaf: kind for kind in TYPES.values() for leaf in kind.leaves}
  pieces = pieces_of(
    adapted.peft, adapted.delta, {leaf: kind.transforms for leaf, kind in kinds.items()}
  )
  kind = _one_type(pieces, kinds)
  layers = _layers(kind, pieces, naming)
  written = kind.write(layers, Model(backbone, naming, frozen))
  config = _named(kind, layers, written, backbone, naming)
  if adapted.head is not None and not kind.classifier:
    raise ValueError(f'{kind.peft_type} of huggingface/peft has no classifier: give head=None')
  # A table has no such entry there; a classifier is read all the same.
  if kind.classifier and kind.kind != 'table':
    config['modules_to_save'] = None if adapted.head is None else [naming.head]
  if written.bare:  # Without a task, peft puts prompts nowhere.
    config['task_type'] = 'CAUSAL_LM' if adapted.head is None else 'SEQ_CLS'
  tensors = _prefixed(written)
  if adapted.head is not None:
    at = f'{SHARED if written.bare else PREFIX}{naming.head}'
    tensors[f'{at}.weight'] = np.asarray(adapted.head.kernel).T
    tensors[f'{at}.bias'] = np.asarray(adapted.head.bias)
  directory.mkdir(parents=True, exist_ok=True)
  contiguous = {name: _stored(tensor) for name, tensor in tensors.items()}
  (directory / TENSORS).write_bytes(save(contiguous, metadata={'format': 'pt'}))
  (directory / CONFIG).write_text(json.dumps({**_DEFAULTS, **config}, indent=2) + '\n')
  write_base(directory, backbone, frozen, {} if facts is None else facts)
  if card:
    (directory / MODEL_CARD).write_text(card, encoding='utf-8')


def _stored(tensor: Any) -> np.ndarray:
  """Contiguous; float32, or integers as they are."""
  whole = np.issubdtype(tensor.dtype, np.integer)
  return np.ascontiguousarray(tensor, None if whole else np.float32)


def _one_type(pieces: Sequence[Piece], kinds: Mapping[type, HfType]) -> HfType:
  """The type of an adapter with all of these leaves."""
  leaves = {type(piece.leaf): piece.leaf for piece in pieces}
  found = {
    kind.peft_type: kind
    for leaf in leaves.values()
    for each, kind in kinds.items()
    if isinstance(leaf, each)
  }
  if len(found) > 1:
    names = sorted(leaf.__name__ for leaf in leaves)
    raise ValueError(f'huggingface/peft has no mixture of {names} in one adapter: save one each')
  return next(iter(found.values()))


def _layers(kind: HfType, pieces: Sequence[Piece], naming: Naming) -> list[Layer]:
  """The pieces by layer of the other library, in the order of the delta."""
  parts: dict[str, list[Part]] = {}
  for piece in pieces:
    path = piece.path.rpartition('/')[0] if kind.replaces else piece.path
    if path in naming.convolutions and not kind.replaces:
      raise ValueError(f'{path!r} is no linear layer of {naming.model}: leave it out')
    name, third = naming.of(path) if kind.kind in LAYERED else (path, None)
    parts.setdefault(name, []).append(Part(third, piece))
  return [Layer(name, tuple(each)) for name, each in parts.items()]


def _named(
  kind: HfType, layers: Sequence[Layer], written: Written, backbone: Backbone, naming: Naming
) -> dict[str, Any]:
  """The configuration, with the names of the layers in the shortest form that says the same."""
  config = {'peft_type': kind.peft_type, **written.config}
  if 'fan_in_fan_out' in kind.keys.only:
    config['fan_in_fan_out'] = False
  if kind.kind not in LAYERED:
    return config
  names = [layer.name for layer in layers]
  config['target_modules'] = sorted(names) if kind.kind != 'table' else _last_parts(names)
  if kind.kind == 'norm' and any('.' not in name for name in names):
    # In a list, timm's `norm` would also be the end of other names; an expression is a whole one.
    config['target_modules'] = '|'.join(map(re.escape, sorted(names)))
  if kind.kind == 'linear' and _last_part_is_enough(
    names, config.get('feedforward_modules', ()), backbone, naming
  ):
    config |= {key: _last_parts(config[key]) for key in _NAMES if key in config}
  return config


def _prefixed(written: Written) -> dict[str, np.ndarray]:
  return {
    **{PREFIX + name: tensor for name, tensor in written.tensors.items()},
    **{SHARED + name: tensor for name, tensor in written.shared.items()},
    **written.bare,
  }


def _last_part_is_enough(
  names: Sequence[str], feedforward: Sequence[str], backbone: Backbone, naming: Naming
) -> bool:
  """Whether the last parts of the names, the usual short form, match the same layers."""
  linear = (spec.site.path for spec in backbone.sites if spec.site.kind == 'linear')
  short, inputs = set(_last_parts(names)), set(_last_parts(feedforward))
  there = {name for path in linear if set(_last_parts([name := naming.of(path).name])) & short}
  outputs = set(_last_parts(set(names) - set(feedforward)))
  return there == set(names) and naming.head not in short and not inputs & outputs


def _last_parts(names: Iterable[str]) -> list[str]:
  return sorted({name.rpartition('.')[2] for name in names})
