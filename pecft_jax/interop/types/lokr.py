"""LOKR: a Kronecker product, of which one or both factors may be products themselves.

KronA's is the same with whole factors, and is read as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, only, same
from pecft_jax.interop.hf_peft_config import finite, given, one_of, patterns, switch, tidy, whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.pieces import Piece
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.krona import KronaDelta
from pecft_jax.peft.lowrank.lokr import LokrDelta, LokrFactors, lokr
from pecft_jax.typing import Delta, PeftTransform

_WHOLE = 1 << 20
_ONE = 'there, a Kronecker product is of all three together'


def _option(piece: Piece, name: str) -> Any:
  """An argument of `lokr`; KronA's factors are whole, as those of a rank that is large enough."""
  if isinstance(piece.leaf, KronaDelta) and name != 'factor':
    return {'rank': _WHOLE, 'decompose_both': False}[name]
  return piece.option(name)


def _scale(piece: Piece) -> float:
  if isinstance(piece.leaf, KronaDelta):
    return piece.option('scale')
  alpha, rank = piece.option('alpha'), piece.option('rank')
  return 1.0 if alpha is None else alpha / rank


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = {layer.name: only(layer, _ONE) for layer in layers}
  option = lambda name: same(((at, _option(piece, name)) for at, piece in pieces.items()), name)
  rank, factor, both = option('rank'), option('factor'), option('decompose_both')
  # One scale for all, that of the first site; the ratios to it go into the second factor.
  scale = _scale(next(iter(pieces.values())))
  tensors: dict[str, np.ndarray] = {}
  for name, piece in pieces.items():
    ratio = np.float32(_scale(piece) / scale)
    first, second = piece.leaf
    tensors |= _factor(f'{name}.lokr_w1', first, np.float32(1))
    tensors |= _factor(f'{name}.lokr_w2', second, ratio)
  return Written(tensors, {
    'r': rank,
    'alpha': tidy(scale * rank),
    'rank_pattern': {},
    'alpha_pattern': {},
    'decompose_both': both,
    'decompose_factor': -1 if factor is None else factor,
    'use_effective_conv2d': False,
  })  # fmt: skip


def _factor(name: str, factor: Any, ratio: np.float32) -> dict[str, np.ndarray]:
  if isinstance(factor, LokrFactors):
    return {f'{name}_b': array(factor.a).T, f'{name}_a': array(factor.b).T * ratio}
  return {name: array(factor).T * ratio}


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  config = found.config
  rank = whole('r', config.get('r'))
  alpha = finite('alpha', config.get('alpha'))
  ranks, alphas = (
    patterns(config, 'rank_pattern', whole),
    patterns(config, 'alpha_pattern', finite),
  )
  both = switch('decompose_both', config.get('decompose_both'))
  factor = given(config, 'decompose_factor', -1)
  factor = None if factor == -1 else whole('decompose_factor', factor)
  common = alpha / rank if alpha > 0 else 1.0
  delta: Delta = {}
  for name, tensors in found.layers.items():
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    own = one_of(ranks, name, rank, 'rank_pattern')
    scale = one_of(alphas, name, alpha, 'alpha_pattern') / own
    c, d = (_read_factor(name, tensors, which) for which in ('lokr_w1', 'lokr_w2'))
    ratio = np.float32(scale / common)
    d = d._replace(b=d.b * ratio) if isinstance(d, LokrFactors) else d * ratio
    delta[place.path] = LokrDelta(c, d)
  peft = lokr(pattern_of(delta), rank, float(alpha), factor=factor, decompose_both=both)
  return (peft if alpha > 0 else lokr(pattern_of(delta), rank, factor=factor)), delta


def _read_factor(name: str, tensors: Mapping[str, np.ndarray], which: str) -> Any:
  own = {suffix for suffix in tensors if suffix.startswith(which)}
  if own == {which} and tensors[which].ndim == 2:
    return jnp.asarray(tensors[which].T)
  pair = [tensors.get(f'{which}_{side}') for side in 'ba']
  if len(own) != 2 or any(each is None or each.ndim != 2 for each in pair):
    raise ValueError(f'{name}: expected {which}, or {which}_a and {which}_b, got {sorted(own)}')
  first, second = (jnp.asarray(each.T) for each in pair if each is not None)
  return LokrFactors(first, second)


LOKR = HfType(
  'LOKR',
  ('lokr', 'krona'),
  (LokrDelta, KronaDelta),
  Keys(
    read=('r', 'alpha', 'rank_pattern', 'alpha_pattern', 'decompose_both', 'decompose_factor'),
    free=(
      'rank_dropout', 'rank_dropout_scale', 'module_dropout', 'init_weights',
      'use_effective_conv2d',
    ),
  ),
  'lokr_w[12](?:_[ab])?',
  _write,
  _read,
)  # fmt: skip
