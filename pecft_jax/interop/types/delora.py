"""DELORA: normalised components, with one trained strength at each layer."""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import array, each_layer, of_length, of_shape, only, same
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.delora import DeloraDelta, delora
from pecft_jax.typing import Delta, Kept, PeftTransform

_ONE = 'there, norms and strength are of all three together'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  leaves = {layer.name: only(layer, _ONE).leaf for layer in layers}
  rank = same(((name, leaf.a.shape[1]) for name, leaf in leaves.items()), 'rank')
  tensors = {}
  for name, leaf in leaves.items():
    tensors[f'{name}.delora_A'] = array(leaf.a).T
    tensors[f'{name}.delora_B'] = array(leaf.b).T
    tensors[f'{name}.delora_lambda'] = array(leaf.strength)
    tensors[f'{name}.delora_w_norm'] = array(leaf.norms.value)
  return Written(tensors, {'r': rank, 'rank_pattern': {}, 'lambda_pattern': {}, 'bias': 'none'})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  whole('r', found.config.get('r'))
  delta: Delta = {}
  ranks = {}
  names = 'delora_A', 'delora_B', 'delora_lambda', 'delora_w_norm'
  for name, (a, b, strength, norms) in each_layer(found, names):
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    of_shape(f'{name}.delora_B', b, (None, len(a)))
    of_length(f'{name}.delora_lambda', strength, 1)
    ranks[name] = len(a)
    delta[place.path] = DeloraDelta(
      jnp.asarray(a.T), jnp.asarray(b.T), jnp.asarray(strength), Kept(jnp.asarray(norms))
    )
  rank = same(ranks.items(), 'rank')
  return delora(pattern_of(delta), rank), delta


DELORA = HfType(
  'DELORA',
  ('delora',),
  (DeloraDelta,),
  Keys(
    read=('r',),
    free=('delora_lambda', 'rank_pattern', 'lambda_pattern', 'module_dropout', 'init_weights'),
    only={'bias': PLAIN},
  ),
  'delora_(?:A|B|lambda|w_norm)',
  _write,
  _read,
)
