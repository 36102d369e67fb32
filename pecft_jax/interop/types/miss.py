"""MISS: one small matrix for all blocks of a layer's inputs."""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import cuts, each_layer, of_shape, same, side_by_side
from pecft_jax.interop.hf_peft_config import given, share, whole
from pecft_jax.interop.hf_type import PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.miss import MissDelta, miss
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = [part.piece for layer in layers for part in layer.parts]
  rank = same(((piece.path, len(piece.leaf.block)) for piece in pieces), 'rank')
  tensors = {
    f'{layer.name}.miss_block': side_by_side(layer, lambda piece: piece.leaf.block, 0)
    for layer in layers
  }
  return Written(tensors, {'r': rank, 'miss_dropout': 0.0, 'init_weights': True, 'bias': 'none'})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank = whole('r', found.config.get('r'))
  dropout = share('miss_dropout', given(found.config, 'miss_dropout', 0.0))
  delta: Delta = {}
  for name, (block,) in each_layer(found, ('miss_block',)):
    of_shape(f'{name}.miss_block', block, (rank, None))
    for place, cut in cuts(name, found.places[name], block.shape[1]):
      if block[:, cut].any() or not block.any():
        delta[place.path] = MissDelta(jnp.asarray(block[:, cut]))
  return miss(pattern_of(delta), rank, dropout=dropout), delta


MISS = HfType(
  'MISS',
  ('miss',),
  (MissDelta,),
  Keys(
    read=('r', 'miss_dropout'),
    free=('mini_r',),
    only={'init_weights': (True, False, None), 'bias': PLAIN},
    why={'init_weights': "'bat' and 'mini' are other functions"},
  ),
  r'miss_block',
  _write,
  _read,
)
