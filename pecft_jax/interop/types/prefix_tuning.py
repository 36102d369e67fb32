"""PREFIX_TUNING and CARTRIDGE: learned keys and values before those of a text.

There the first word of a text comes after the prefix; here it is at position 0, so what a query
sees of the keys differs by a turn of as many positions as the prefix is long. Keys are turned when
they are written, and back when they are read, in float64. What a network made is written as it is.

transformers' LlamaForSequenceClassification takes no keys from outside since version 5: an adapter
with a classifier needs an older one there.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.families.decoder.rope import Rope
from pecft_jax.interop.hf_layers import array, of_shape
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.interop.types.prompt_tuning import NAME, check_texts, of_model
from pecft_jax.peft.tokens.prefix import PrefixDelta, prefix
from pecft_jax.peft.tokens.prefix_mlp import SHARED, PrefixEncoder, PrefixHead, flat
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  check_texts(model, 'PREFIX_TUNING')
  leaves = {layer.name: layer.leaf for layer in layers}
  if SHARED in leaves:
    leaves = flat(leaves)
  places = _sites(model)
  if leaves.keys() != places.keys() or any(len(layer.parts) > 1 for layer in layers):
    raise ValueError(
      f'huggingface/peft has one prefix at each of {list(places)}, got {sorted(leaves)}'
    )
  shapes = {leaf.k.shape for leaf in leaves.values()}
  if len(shapes) > 1:
    raise ValueError(f'huggingface/peft has one length of all prefixes, got {sorted(shapes)}')
  length, heads, size = next(iter(shapes))
  pairs = [(_turned(array(leaves[at].k), length, model), array(leaves[at].v)) for at in places]
  # [P, 2 L, H, K], key and value of a layer after one another.
  tensor = np.stack([each for pair in pairs for each in pair], 1).reshape(length, -1)
  config = of_model(length, heads * size, heads, model)
  return Written({}, {**config, 'prefix_projection': False}, bare={NAME: tensor})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  check_texts(model, found.config['peft_type'])
  length = whole('num_virtual_tokens', found.config.get('num_virtual_tokens'))
  places = _sites(model)
  heads, size = next(iter(places.values()))
  if NAME not in found.shared:
    raise ValueError(f'it has no tensor {NAME}')
  tensor = of_shape(NAME, found.shared[NAME], (length, 2 * len(places) * heads * size))
  each = tensor.reshape(length, 2 * len(places), heads, size)
  delta: Delta = {
    at: PrefixDelta(
      jnp.asarray(_turned(each[:, 2 * i], -length, model)), jnp.asarray(each[:, 2 * i + 1])
    )
    for i, at in enumerate(places)
  }
  return prefix(pattern_of(delta), length), delta


def _sites(model: Model) -> dict[str, tuple[int, int]]:
  """Heads of keys and their size, by attention, in the order of the layers."""
  specs = [spec for spec in model.backbone.sites if spec.site.kind == 'attend']
  specs.sort(key=lambda spec: spec.site.layer or 0)
  return {spec.site.path: (spec.args[1].shape[2], spec.args[1].shape[3]) for spec in specs}


def _turned(keys: np.ndarray, positions: int, model: Model) -> np.ndarray:
  """Keys [P, H, K] at positions that are larger by this number."""
  settings = model.backbone.settings
  if settings is None or 'rope_theta' not in settings:
    raise ValueError(
      f'{model.backbone.name} does not tell its rotary positions: expected one made by decoder()'
    )
  names = 'theta', 'factor', 'low', 'high', 'original'
  frequencies = Rope(*(settings[f'rope_{name}'] for name in names)).frequencies(keys.shape[-1])
  angles = positions * frequencies.astype(np.float64)
  first, second = np.split(keys.astype(np.float64), 2, -1)
  cos, sin = np.cos(angles), np.sin(angles)
  both = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
  return both.astype(np.float32)


PREFIX_TUNING = HfType(
  'PREFIX_TUNING',
  ('prefix', 'prefix_mlp'),
  (PrefixDelta, PrefixEncoder, PrefixHead),
  Keys(
    read=('num_virtual_tokens',),
    free=(
      'token_dim', 'num_attention_heads', 'num_layers', 'init_weights', 'encoder_hidden_size',
      'prefix_projection',
    ),
    only={'num_transformer_submodules': (1, None)},
  ),
  '(?!)',
  _write,
  _read,
  kind='attend',
  shared=NAME,
)  # fmt: skip

CARTRIDGE = PREFIX_TUNING._replace(
  peft_type='CARTRIDGE',
  leaves=(),
  keys=Keys(
    read=('num_virtual_tokens',),
    free=('token_dim', 'num_attention_heads', 'num_layers', 'num_frozen_tokens'),
    only={'num_transformer_submodules': (1, None)},
  ),
)
