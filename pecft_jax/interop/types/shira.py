"""SHIRA: a sparse change of a weight."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, each_layer, of_length, of_shape, only, same
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import OFF, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.selective.shira import ShiraDelta, shira
from pecft_jax.typing import Delta, Kept, PeftTransform

_ONE = 'there, as many entries are chosen of all three together'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  shapes = {s.site.path: s.args[1].shape for s in model.backbone.sites if s.site.kind == 'linear'}
  pieces = {layer.name: only(layer, _ONE) for layer in layers}
  tensors, ranks = {}, {}
  for name, piece in pieces.items():
    rows, columns = np.divmod(np.asarray(piece.leaf.index.value), shapes[piece.path][1])
    tensors[f'{name}.shira_weight'] = array(piece.leaf.values)
    tensors[f'{name}.shira_indices'] = np.stack([columns, rows]).astype(np.int32)
    ranks[name] = len(rows) / sum(shapes[piece.path])
  return Written(tensors, {'r': int(same(ranks.items(), 'rank')), 'mask_type': 'random'})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank = whole('r', found.config.get('r'))
  delta: Delta = {}
  for name, (values, indices) in each_layer(found, ('shira_weight', 'shira_indices')):
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    of_shape(f'{name}.shira_indices', indices, (2, rank * sum(place.shape)))
    of_length(f'{name}.shira_weight', values, indices.shape[1])
    out, into = indices.astype(np.int64)
    inside = (into >= 0) & (into < place.shape[0]) & (out >= 0) & (out < place.shape[1])
    flat = into * place.shape[1] + out
    if not inside.all() or len(np.unique(flat)) < len(flat):
      raise ValueError(f'{name}.shira_indices: expected different entries of {place.shape}')
    delta[place.path] = ShiraDelta(jnp.asarray(values), Kept(jnp.asarray(flat, jnp.int32)))
  return shira(pattern_of(delta), rank), delta


SHIRA = HfType(
  'SHIRA',
  ('shira',),
  (ShiraDelta,),
  Keys(
    read=('r',),
    free=('mask_type', 'random_seed', 'init_weights'),
    only={'fan_in_fan_out': OFF},
  ),
  'shira_(?:weight|indices)',
  _write,
  _read,
  integers=('shira_indices',),
)
