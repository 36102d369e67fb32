"""OSF: the minor singular part of each layer's weight.

Only what is trained is in the file; what it stands beside is read off the weights of the base. peft
leaves U and V where an update puts them, so an adapter that is read is of `osf(exact=False)`.
"""

import re
from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import array, each_layer, most_frequent, of_length, of_shape, only
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.osf import OsfDelta, osf, split_at
from pecft_jax.peft.weights import read as weights_of
from pecft_jax.typing import Delta, PeftTransform

_ONE = 'there, the singular values are of all three together'
_NAMES = tuple(f'osf_svd_params.{name}' for name in ('U_low', 'S_low', 'V_low'))


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  tensors, ranks = {}, {}
  for layer in layers:
    leaf = only(layer, _ONE).leaf
    own = array(leaf.v).T, array(leaf.s), array(leaf.u).T
    tensors |= {f'{layer.name}.{name}': part for name, part in zip(_NAMES, own, strict=True)}
    ranks[layer.name] = leaf.frozen.value.u_high.shape[1]
  most, others = most_frequent(ranks)
  pattern = {f'^{re.escape(name)}$': rank for name, rank in others.items()}
  return Written(tensors, {'effective_rank': most, 'rank_pattern': pattern})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  if model.params is None:
    raise ValueError(
      'an adapter of type OSF holds a part of each weight, and is read beside the weights of its '
      'base: give params'
    )
  delta: Delta = {}
  ranks, halves = {}, []
  for name, (v, s, u) in each_layer(found, _NAMES):
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    (d_in, d_out), small = place.shape, min(place.shape)
    rank = small - len(s)
    if not 1 <= rank < small:
      raise ValueError(f'{name}: expected from 1 to {small - 1} singular values, got {len(s)}')
    of_length(f'{name}.{_NAMES[1]}', s, small - rank)
    of_shape(f'{name}.{_NAMES[0]}', v, (d_out, small - rank))
    of_shape(f'{name}.{_NAMES[2]}', u, (small - rank, d_in))
    start = split_at(place.path, weights_of(model.params, place.path).main, rank)
    delta[place.path] = start._replace(u=jnp.asarray(u.T), s=jnp.asarray(s), v=jnp.asarray(v.T))
    ranks[name] = rank
    halves.append(rank == small // 2)
  most, _ = most_frequent(ranks)
  return osf(pattern_of(delta), None if all(halves) else most, exact=False), delta


OSF = HfType(
  'OSF',
  ('osf',),
  (OsfDelta,),
  Keys(free=('effective_rank', 'rank_pattern', 'init_weights', 'target_svd_config')),
  r'osf_svd_params\.(?:U|S|V)_low',
  _write,
  _read,
  ranked={'u': 1, 's': 0, 'v': 0, 'u_high': 1, 'v_high': 0},
)
