"""ADALORA: products of which single components were pruned.

The transform here has one scale, alpha / (r + 1e-5), and as many components at each site, of which
those beyond the budget are zeros; so has the file, where they may be left out.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, cuts, each_layer, joined, of_shape, same, split
from pecft_jax.interop.hf_peft_config import finite, given, switch, tidy, whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.pieces import Piece
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.interop.types.lora import FREE, ONLY, WHY
from pecft_jax.peft.lowrank.adalora import AdaloraDelta, Importance, adalora
from pecft_jax.typing import Delta, Kept, PeftTransform

_TINY = 1e-5  # Added to the rank that divides alpha.


def _scale(piece: Piece) -> float:
  alpha, rank = piece.option('alpha'), piece.option('rank')
  return (rank if alpha is None else alpha) / (rank + _TINY)


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = [part.piece for layer in layers for part in layer.parts]
  scale = same(((piece.path, _scale(piece)) for piece in pieces), 'alpha')
  # All layers have one rank there: fill up with components that are zero.
  rank = max(sum(len(part.piece.leaf.l) for part in layer.parts) for layer in layers)
  tensors = {}
  for layer in layers:
    p, q = joined(layer, lambda piece: (piece.leaf.p, piece.leaf.q))
    middle = np.concatenate([array(part.piece.leaf.l) for part in layer.parts])
    tensors[f'{layer.name}.lora_A'] = _filled(p.T, rank)
    tensors[f'{layer.name}.lora_B'] = _filled(q, rank).T
    tensors[f'{layer.name}.lora_E'] = _filled(middle[:, None], rank)
  target = {option for piece in pieces if (option := piece.options.get('target'))}
  return Written(tensors, {
    'init_r': rank,
    'target_r': min(rank, max(target, default=rank)),
    'lora_alpha': tidy(scale * (rank + _TINY)),
    'rank_pattern': None,
    'lora_dropout': 0.0,
    'bias': 'none',
    'total_step': 1,
    'tinit': 0,
    'tfinal': 0,
  })  # fmt: skip


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
  return np.pad(rows, ((0, count - len(rows)), (0, 0)))


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  config = found.config
  rank = whole('init_r', config.get('init_r'))
  target = whole('target_r', given(config, 'target_r', rank))
  alpha = finite('lora_alpha', config.get('lora_alpha'))
  scale = (alpha if alpha > 0 else rank) / (rank + _TINY)
  if switch('use_rslora', config.get('use_rslora')):
    raise ValueError('use_rslora has no effect on an ADALORA adapter: set it to false')
  leaves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
  for name, (a, b, e) in each_layer(found, ('lora_A', 'lora_B', 'lora_E')):
    if len(a) > rank:
      raise ValueError(f'the tensors of {name} have rank {len(a)}, its configuration says {rank}')
    of_shape(f'{name}.lora_E', e, (len(a), 1))
    of_shape(f'{name}.lora_B', b, (None, len(a)))
    for path, rows, cut in split(cuts(name, found.places[name], len(b)), b.T):
      leaves[path] = a[rows].T, e[rows, 0], b.T[rows, cut]
  # Below that of the file where q, k and v were joined there.
  own = max(len(middle) for _, middle, _ in leaves.values())
  delta: Delta = {path: _leaf(*leaf, own) for path, leaf in leaves.items()}
  alpha = tidy(scale * (own + _TINY))
  return adalora(pattern_of(delta), own, min(target, own), alpha=float(alpha)), delta


def _leaf(p: np.ndarray, middle: np.ndarray, q: np.ndarray, rank: int) -> AdaloraDelta:
  """A leaf of this rank; components that are left out are beyond the budget."""
  more = rank - len(middle)
  p, middle, q = np.pad(p, ((0, 0), (0, more))), np.pad(middle, (0, more)), _filled(q, rank)
  zeros: Any = lambda: tuple(jnp.zeros(part.shape) for part in (p, middle, q))
  known = Importance(zeros(), zeros())
  mask = Kept(jnp.arange(rank) < rank - more)
  return AdaloraDelta(jnp.asarray(p), jnp.asarray(middle), jnp.asarray(q), mask, Kept(known))


ADALORA = HfType(
  'ADALORA',
  ('adalora',),
  (AdaloraDelta,),
  Keys(
    read=('init_r', 'target_r', 'lora_alpha', 'use_rslora', 'rank_pattern'),
    free=(
      *FREE, 'r', 'lora_dropout', 'tinit', 'tfinal', 'deltaT', 'beta1', 'beta2', 'orth_reg_weight',
      'total_step',
    ),
    only={**ONLY, 'use_dora': (False, None), 'alpha_pattern': ({}, None)},
    why=WHY,
  ),
  r'lora_[ABE]',
  _write,
  _read,
)  # fmt: skip
