"""LOHA: the entrywise product of two low-rank matrices."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import cuts, each_layer, joined, most_frequent, of_shape
from pecft_jax.interop.hf_peft_config import check_rank, finite, one_of, patterns, tidy, whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.pieces import Piece
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.loha import LohaDelta, loha
from pecft_jax.typing import Delta, PeftTransform

# Suffixes in the order of a leaf's fields, whose transposes they are.
_NAMES = ('hada_w1_b', 'hada_w1_a', 'hada_w2_b', 'hada_w2_a')


def _scale(piece: Piece) -> float:
  alpha, rank = piece.option('alpha'), piece.option('rank')
  return 1.0 if alpha is None else alpha / rank


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  # One scale for all, that of the first site; the ratios to it go into the first product.
  scale = _scale(layers[0].parts[0].piece)
  tensors, ranks = {}, {}
  for layer in layers:
    pairs = (
      joined(layer, lambda p: (p.leaf.a1, np.float32(_scale(p) / scale) * p.leaf.b1)),
      joined(layer, lambda p: (p.leaf.a2, p.leaf.b2)),
    )
    four = [each for pair in pairs for each in pair]
    tensors |= {f'{layer.name}.{n}': each.T for n, each in zip(_NAMES, four, strict=True)}
    ranks[layer.name] = len(four[1])
  rank, others = most_frequent(ranks)
  return Written(tensors, {
    'r': rank,
    'alpha': tidy(scale * rank),
    'rank_pattern': others,
    'alpha_pattern': {name: tidy(scale * r) for name, r in others.items()},
    'use_effective_conv2d': False,
  })  # fmt: skip


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank = whole('r', found.config.get('r'))
  alpha = finite('alpha', found.config.get('alpha'))
  ranks = patterns(found.config, 'rank_pattern', whole)
  alphas = patterns(found.config, 'alpha_pattern', finite)
  common = alpha / rank if alpha > 0 else 1.0
  delta: Delta = {}
  for name, tensors in each_layer(found, _NAMES):
    for suffix, tensor in zip(_NAMES, tensors, strict=True):
      of_shape(f'{name}.{suffix}', tensor, (None, None))
    a1, b1, a2, b2 = (tensor.T for tensor in tensors)
    own = len(b1)
    if {a1.shape[1], a2.shape[1], len(b2)} != {own} or b1.shape != b2.shape:
      raise ValueError(f'{name}: the factors do not fit: {[list(t.shape) for t in tensors]}')
    check_rank(ranks, name, rank, own)
    ratio = np.float32(one_of(alphas, name, alpha, 'alpha_pattern') / own / common)
    for place, cut in cuts(name, found.places[name], b1.shape[1]):
      # Where not all of q, k and v were adapted, the rows of the others are zeros.
      rows = b1[:, cut].any(1) | b2[:, cut].any(1)
      if rows.any():
        factors = a1[:, rows], b1[rows, cut] * ratio, a2[:, rows], b2[rows, cut]
        delta[place.path] = LohaDelta(*map(jnp.asarray, factors))
  most, _ = most_frequent({path: leaf.a1.shape[1] for path, leaf in delta.items()})
  return loha(pattern_of(delta), most, float(common * most)), delta


LOHA = HfType(
  'LOHA',
  ('loha',),
  (LohaDelta,),
  Keys(
    read=('r', 'alpha', 'rank_pattern', 'alpha_pattern'),
    free=('rank_dropout', 'module_dropout', 'init_weights', 'use_effective_conv2d'),
  ),
  'hada_w[12]_[ab]',
  _write,
  _read,
  ranked={'a1': 1, 'b1': 0, 'a2': 1, 'b2': 0},
)
