"""BOFT: a layer's inputs rotated by a butterfly, its outputs scaled."""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import alike, cuts, each_layer, of_shape, same, side_by_side
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.multiplicative.boft import BoftDelta, boft
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  tensors, sizes = {}, {}
  for layer in layers:
    turns = alike(layer, 'rotation', lambda piece: piece.leaf.r)
    tensors[f'{layer.name}.boft_R'] = turns
    tensors[f'{layer.name}.boft_s'] = side_by_side(layer, lambda piece: piece.leaf.s, 1)[:, None]
    sizes[layer.name] = turns.shape[0], turns.shape[2]
  factors, block = same(sizes.items(), 'number of factors and size of blocks')
  return Written(tensors, {
    'boft_block_size': block,
    'boft_block_num': 0,
    'boft_n_butterfly_factor': factors,
    'boft_dropout': 0.0,
    'bias': 'none',
  })  # fmt: skip


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  factors = whole('boft_n_butterfly_factor', found.config.get('boft_n_butterfly_factor', 1))
  delta: Delta = {}
  blocks = {}
  for name, (turns, s) in each_layer(found, ('boft_R', 'boft_s')):
    places = found.places[name]
    of_shape(f'{name}.boft_R', turns, (factors, None, None, None))
    of_shape(f'{name}.boft_s', s, (None, 1))
    blocks[name] = turns.shape[2]
    for place, cut in cuts(name, places, len(s)):
      delta[place.path] = BoftDelta(jnp.asarray(turns), jnp.asarray(s[cut, 0]))
  if len(set(blocks.values())) > 1:
    raise ValueError(f'expected blocks of one size at all layers, got {blocks}')
  return boft(pattern_of(delta), next(iter(blocks.values())), factors), delta


BOFT = HfType(
  'BOFT',
  ('boft',),
  (BoftDelta,),
  Keys(
    read=('boft_n_butterfly_factor',),
    free=('boft_block_size', 'boft_block_num', 'boft_dropout', 'init_weights'),
    only={'bias': PLAIN, 'fan_in_fan_out': OFF},
  ),
  'boft_[Rs]',
  _write,
  _read,
)
