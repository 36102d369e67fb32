"""`config.json` of timm: which of its models compute the same function as `vit`, and which do not.

Models with the same names and shapes of tensors may have another number of heads, another
activation, pooling or value range. Every key is in one of three tables: read, accepted with certain
values, or without effect on what the weights compute. Any other key is refused.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pecft_jax.backbones.core.beside import (
  CONFIG,
  check_known,
  check_values,
  configuration_beside,
)
from pecft_jax.typing import Backbone

# Sizes of timm's architectures that are this function; heads cannot be read from the tensors.
_HEADS = {
  'tiny': 3, 'small': 6, 'medium': 8, 'base': 12, 'large': 16, 'huge': 16, 'giant': 16,
  'gigantic': 16,
}  # fmt: skip
_ARCHITECTURE = re.compile(
  rf'(?:vit|deit)_({"|".join(_HEADS)})_patch\d+_\d+(?:_in21k)?(?:\.[\w.-]+)?'
)
# timm's names of the arguments of `vit`.
_SIZES = {
  'embed_dim': 'width', 'depth': 'depth', 'num_heads': 'heads', 'mlp_ratio': 'mlp_ratio',
  'patch_size': 'patch', 'in_chans': 'channels', 'img_size': 'image_size',
}  # fmt: skip
_POOL: Mapping[str, tuple[Any, ...]] = {'global_pool': ('token', '')}
_ONLY: Mapping[str, tuple[Any, ...]] = {
  **_POOL,
  'act_layer': (None, 'gelu'), 'norm_layer': (None,), 'qkv_bias': (True,), 'proj_bias': (True,),
  'qk_norm': (False,), 'scale_attn_norm': (False,), 'scale_mlp_norm': (False,),
  'init_values': (None,), 'class_token': (True,), 'pos_embed': ('learn',),
  'no_embed_class': (False,), 'reg_tokens': (0,), 'pre_norm': (False,), 'final_norm': (True,),
  'fc_norm': (None, False), 'dynamic_img_pad': (False,), 'embed_norm_layer': (None,),
}  # fmt: skip
_HARMLESS = {
  'num_classes', 'weight_init', 'fix_init', 'dynamic_img_size', 'drop_rate', 'pos_drop_rate',
  'patch_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate',
}  # fmt: skip
_TOP = {
  'architecture', 'num_classes', 'num_features', 'label_names', 'label_descriptions', 'model_args',
  'pretrained_cfg', *_POOL,
}  # fmt: skip
# Of preparing images, of the head, and where the file comes from; mean and std are read.
_PREPARED = {
  'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'architecture', 'tag', 'custom_load',
  'input_size', 'test_input_size', 'min_input_size', 'fixed_input_size', 'interpolation',
  'crop_pct', 'test_crop_pct', 'crop_mode', 'mean', 'std', 'num_classes', 'label_offset',
  'label_names', 'label_descriptions', 'pool_size', 'test_pool_size', 'first_conv', 'classifier',
  'license', 'description', 'origin_url', 'paper_name', 'paper_ids', 'notes',
}  # fmt: skip


def check_timm_config(path: pathlib.Path, backbone: Backbone) -> None:
  """Checks a ViT against the configuration of timm beside its weights.

  Args:
    path: of the weights; nothing is checked where there is no `config.json` beside them.
    backbone: a `vit`.

  Raises:
    ValueError: if an entry is unknown, or says that the weights belong to another function or value
      range; names the file and the entry.
  """
  entries = configuration_beside(path)
  if entries is None:
    return
  path = path.parent / CONFIG
  check_known(path, entries, _TOP)
  check_values(path, entries, _POOL)
  arguments, prepared = (_object(path, entries, key) for key in ('model_args', 'pretrained_cfg'))
  check_known(path, arguments, {*_SIZES, *_ONLY, *_HARMLESS})
  check_values(path, arguments, _ONLY)
  check_known(path, prepared, _PREPARED)
  kind = _ARCHITECTURE.fullmatch(str(entries.get('architecture')))
  if kind is None:
    raise ValueError(
      f'{path}: expected an architecture such as vit_base_patch16_224, got '
      f'{entries.get("architecture")!r}: others may use the weights in another way'
    )
  said = {'num_heads': _HEADS[kind[1]], **arguments}
  ours = backbone.settings or {}
  for key, name in _SIZES.items():
    # timm gives sides of images and patches as one number or as two.
    sides = said[key] if isinstance(said.get(key), list) else [said.get(key)]
    if key in said and name in ours and any(side != ours[name] for side in sides):
      raise ValueError(f'{path} says {key} {said[key]}, {backbone.name} has {name} {ours[name]}')
  for key in ('mean', 'std'):
    own = getattr(backbone.inputs, key)
    if key in prepared and not _close(prepared[key], own):
      raise ValueError(
        f'{path} says {key} {prepared[key]}, {backbone.name} has {list(own)}: values of another '
        'range would be read'
      )


def _object(path: pathlib.Path, entries: Mapping[str, Any], key: str) -> dict[str, Any]:
  found = entries.get(key)
  if not isinstance(found, dict | None):
    raise ValueError(f'{path}: expected an object for {key}, got {found!r}')
  return found or {}


def _close(said: Any, own: tuple[float, ...]) -> bool:
  """Whether numbers are equal to the four digits in which they are published."""
  if not isinstance(said, list) or not all(type(each) in (int, float) for each in said):
    return False
  return len(said) == len(own) and bool(np.allclose(said, own, rtol=0, atol=1e-4))
