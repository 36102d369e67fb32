"""HRA: a layer's inputs reflected along trained directions."""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import alike, each_layer, of_shape, same
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.multiplicative.hra import HraDelta, hra
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  own = {layer.name: alike(layer, 'reflection', lambda piece: piece.leaf.u) for layer in layers}
  rank = same(((name, u.shape[1]) for name, u in own.items()), 'rank')
  tensors = {f'{name}.hra_u': u for name, u in own.items()}
  return Written(tensors, {'r': rank, 'apply_GS': False, 'bias': 'none'})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank = whole('r', found.config.get('r'))
  delta: Delta = {}
  for name, (u,) in each_layer(found, ('hra_u',)):
    of_shape(f'{name}.hra_u', u, (None, rank))
    for place in found.places[name]:
      delta[place.path] = HraDelta(jnp.asarray(u))
  return hra(pattern_of(delta), rank), delta


HRA = HfType(
  'HRA',
  ('hra',),
  (HraDelta,),
  Keys(
    read=('r',),
    free=('init_weights',),
    only={'apply_GS': OFF, 'bias': PLAIN},
    why={'apply_GS': 'reflections along orthonormalised directions are another function'},
  ),
  'hra_u',
  _write,
  _read,
)
