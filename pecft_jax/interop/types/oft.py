"""OFT: a layer's inputs rotated block by block."""

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import alike, each_layer, of_shape, same
from pecft_jax.interop.hf_peft_config import given, switch, whole
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.multiplicative.oft import OftDelta, oft
from pecft_jax.typing import Delta, PeftTransform

_SINCE = (0, 18)  # Before, the series was another one.


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = [part.piece for layer in layers for part in layer.parts]
  option = lambda name: same(((piece.path, piece.option(name)) for piece in pieces), name)
  tensors = {
    f'{layer.name}.oft_R.weight': alike(layer, 'rotation', lambda piece: piece.leaf.q)
    for layer in layers
  }
  terms = option('terms')
  return Written(tensors, {
    'r': 0,
    'oft_block_size': option('block'),
    'block_share': option('shared'),
    'use_cayley_neumann': terms is not None,
    'num_cayley_neumann_terms': 5 if terms is None else terms,
    'coft': False,
    'module_dropout': 0.0,
    'bias': 'none',
    'peft_version': '.'.join(map(str, (*_SINCE, 0))),
  })  # fmt: skip


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  config = found.config
  block = whole('oft_block_size', config.get('oft_block_size'))
  shared = switch('block_share', config.get('block_share'))
  series = switch('use_cayley_neumann', given(config, 'use_cayley_neumann', True))
  terms = whole('num_cayley_neumann_terms', given(config, 'num_cayley_neumann_terms', 5))
  if series and _version(config.get('peft_version')) < _SINCE:
    raise ValueError(
      f'peft_version is {config.get("peft_version")!r}: with use_cayley_neumann, the rotations of '
      'adapters from before 0.18 are others'
    )
  delta: Delta = {}
  for name, (q,) in each_layer(found, ('oft_R.weight',)):
    places = found.places[name]
    blocks = 1 if shared else places[0].shape[0] // block
    of_shape(f'{name}.oft_R.weight', q, (blocks, block * (block - 1) // 2))
    for place in places:
      delta[place.path] = OftDelta(jnp.asarray(q))
  peft = oft(pattern_of(delta), block, terms=terms if series else None, shared=shared)
  return peft, delta


def _version(text: Any) -> tuple[int, int]:
  found = re.match(r'(\d{1,4})\.(\d{1,4})', text) if isinstance(text, str) else None
  return (int(found[1]), int(found[2])) if found else (0, 0)


OFT = HfType(
  'OFT',
  ('oft',),
  (OftDelta,),
  Keys(
    read=(
      'oft_block_size', 'block_share', 'use_cayley_neumann', 'num_cayley_neumann_terms',
      'peft_version',
    ),
    free=('r', 'module_dropout', 'init_weights', 'eps'),
    only={'coft': OFF, 'bias': PLAIN, 'fan_in_fan_out': OFF},
    why={'coft': 'rotations are projected whenever they are applied'},
  ),
  r'oft_R\.weight',
  _write,
  _read,
)  # fmt: skip
