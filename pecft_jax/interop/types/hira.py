"""HIRA: the weight times a low-rank product, entry by entry.

peft gives all layers one rank, whatever `rank_pattern` says.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import (
  cuts,
  each_layer,
  joined_once,
  most_frequent,
  of_shape,
  split,
)
from pecft_jax.interop.hf_peft_config import given, share, whole
from pecft_jax.interop.hf_type import OFF, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.hira import HiraDelta, hira
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  factors = {
    layer.name: joined_once(layer, lambda piece: (piece.leaf.a, piece.leaf.b)) for layer in layers
  }
  # Filled up with components that are zero.
  rank = max(len(b) for _, b in factors.values())
  tensors = {}
  for name, (a, b) in factors.items():
    tensors[f'{name}.hira_A'] = np.pad(a.T, ((0, rank - len(b)), (0, 0)))
    tensors[f'{name}.hira_B'] = np.pad(b.T, ((0, 0), (0, rank - len(b))))
  return Written(tensors, {'r': rank, 'hira_dropout': 0.0})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  whole('r', found.config.get('r'))
  dropout = share('hira_dropout', given(found.config, 'hira_dropout', 0.0))
  delta: Delta = {}
  for name, (a, b) in each_layer(found, ('hira_A', 'hira_B')):
    of_shape(f'{name}.hira_B', b, (None, len(a)))
    for path, rows, cut in split(cuts(name, found.places[name], len(b)), b.T):
      delta[path] = HiraDelta(jnp.asarray(a[rows].T), jnp.asarray(b.T[rows, cut]))
  most, _ = most_frequent({path: leaf.a.shape[1] for path, leaf in delta.items()})
  return hira(pattern_of(delta), most, dropout=dropout), delta


HIRA = HfType(
  'HIRA',
  ('hira',),
  (HiraDelta,),
  Keys(
    read=('r', 'hira_dropout'),
    free=('init_weights', 'rank_pattern'),
    only={'fan_in_fan_out': OFF},
  ),
  r'hira_[AB]',
  _write,
  _read,
  ranked={'a': 1, 'b': 0},
)
