"""LORA: LoRA, rsLoRA, DoRA, and transforms that are a product of two factors once they are trained.

PiSSA, and what starts as it does, is written with the part of the start taken off, which doubles
its rank; that one, LoRA-FA, LoRA-XS and EVA are plain LoRAs when they are read again. Ranks and
alphas of LoRA that differ between layers are `rank_pattern` and `alpha_pattern`, by the full names
of the layers."""

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.backbones.core.finite import check_finite
from pecft_jax.interop.hf_layers import (
  array,
  cuts,
  exactly,
  joined_once,
  most_frequent,
  of_length,
  split,
)
from pecft_jax.interop.hf_peft_config import (
  check_rank,
  finite,
  given,
  one_of,
  patterns,
  share,
  switch,
  tidy,
  whole,
)
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.pieces import Piece
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.dora import DoraDelta, dora
from pecft_jax.peft.lowrank.lora import LoraDelta, ScaledLoraDelta, lora, with_scales
from pecft_jax.peft.lowrank.lora_fa import LoraFaDelta
from pecft_jax.peft.lowrank.lora_xs import LoraXsDelta
from pecft_jax.peft.lowrank.pissa import PissaDelta
from pecft_jax.peft.weights import read as weights_of
from pecft_jax.typing import Delta, Kept, Params, PeftTransform

# Entries of LORA that change the function; ADALORA has the same.
ONLY: Mapping[str, tuple[Any, ...]] = {
  'bias': PLAIN,
  'fan_in_fan_out': OFF,
  'init_lora_weights': (True, False, 'gaussian', 'eva', 'orthogonal', 'mica', None),
  'loftq_config': ({}, None),
  'corda_config': (None,),
  'lora_ga_config': (None,),
  'lora_bias': OFF,
  'use_qalora': OFF,
  'use_bdlora': (None, False),
  'alora_invocation_tokens': (None,),
  'arrow_config': (None,),
  'kasa_config': (None,),
  'velora_config': (None,),
  'monteclora_config': (None,),
  'layer_replication': (None,),
  'target_parameters': (None, []),
  'trainable_token_indices': (None,),
  'ensure_weight_tying': OFF,
}
FREE = ('eva_config', 'megatron_config', 'megatron_core', 'runtime_config', 'qalora_group_size')
WHY = {
  'bias': 'the file replaces biases of the base',
  'init_lora_weights': 'it takes a part off the base weights; save it with '
  'path_initial_model_for_weight_conversion, as a plain LoRA',
}


class Lora(NamedTuple):
  """The configuration of a LoRA, rsLoRA or DoRA adapter.

  Attributes:
    rank: r.
    alpha: of layers that no pattern names.
    ranks: values by pattern, of `rank_pattern`.
    alphas: the same of `alpha_pattern`.
    stabilised: whether the scale is alpha / sqrt(r).
    dora: whether there are magnitudes.
    dropout: in training.
  """

  rank: int
  alpha: float
  ranks: Mapping[re.Pattern[str], int]
  alphas: Mapping[re.Pattern[str], float]
  stabilised: bool
  dora: bool
  dropout: float


def lora_config(config: Mapping[str, Any]) -> Lora:
  """Reads the configuration of a LoRA, and checks each value.

  Raises:
    ValueError: for a value of another type, or one that is not finite; names the entry.
  """
  return Lora(
    rank=whole('r', config.get('r')),
    alpha=finite('lora_alpha', config.get('lora_alpha')),
    ranks=patterns(config, 'rank_pattern', whole),
    alphas=patterns(config, 'alpha_pattern', finite),
    stabilised=switch('use_rslora', config.get('use_rslora')),
    dora=switch('use_dora', config.get('use_dora')),
    dropout=share('lora_dropout', given(config, 'lora_dropout', 0.0)),
  )


def scale_of(config: Lora, name: str, rank: int) -> float:
  """The scale of A B in one layer.

  Args:
    config: of the adapter.
    name: of the layer, as in the file.
    rank: of its tensors.

  Raises:
    ValueError: where `r` or `rank_pattern` contradict the tensors, or two entries of
      `alpha_pattern` name the layer with different values.
  """
  check_rank(config.ranks, name, config.rank, rank)
  alpha = one_of(config.alphas, name, config.alpha, 'alpha_pattern')
  return alpha / (math.sqrt(rank) if config.stabilised else rank)


class _Form(NamedTuple):
  """A leaf that is a product A B.

  Attributes:
    factors: `(leaf) -> (a [d_in, r], b [r, d_out])`
    like: `(a, b) -> leaf` with this product.
  """

  factors: Callable[[Any], tuple[Any, Any]]
  like: Callable[[Any, Any], Any]


def _less_start(leaf: PissaDelta) -> tuple[np.ndarray, np.ndarray]:
  """The product now less that of the start, of rank 2 r."""
  start = leaf.start.value
  a = np.concatenate([array(leaf.a), array(start.a)], 1)
  return a, np.concatenate([array(leaf.b), -array(start.b)])


_FORMS: Mapping[type, _Form] = {
  LoraDelta: _Form(lambda leaf: (leaf.a, leaf.b), lambda a, b: LoraDelta(a, b)),
  ScaledLoraDelta: _Form(
    lambda leaf: (leaf.a, leaf.b), lambda a, b: ScaledLoraDelta(a, b, Kept(jnp.ones(())))
  ),
  DoraDelta: _Form(
    lambda leaf: (leaf.a, leaf.b), lambda a, b: DoraDelta(a, b, jnp.ones(b.shape[1]))
  ),
  PissaDelta: _Form(
    _less_start,
    lambda a, b: PissaDelta(a, b, Kept(LoraDelta(jnp.zeros_like(a), jnp.zeros_like(b)))),
  ),
  LoraFaDelta: _Form(lambda leaf: (leaf.a.value, leaf.b), lambda a, b: LoraFaDelta(b, Kept(a))),
  LoraXsDelta: _Form(
    lambda leaf: (leaf.a.value, array(leaf.core) @ array(leaf.b.value)),
    lambda a, b: LoraXsDelta(jnp.eye(a.shape[1]), Kept(a), Kept(b)),
  ),
}


def scale_in(piece: Piece) -> float:
  """The scale of A B of a transform, measured by merging a tiny adapter.

  Transforms do not expose it, but for one with a scale at each site. With A B = [[1], [0]] a
  weight [[0], [1]] becomes [[scale], [1]], in DoRA times a norm.
  """
  if isinstance(piece.leaf, ScaledLoraDelta):
    return float(piece.leaf.scale.value)
  form = _FORMS[type(piece.leaf)]
  rank = form.factors(piece.leaf)[0].shape[1]
  if isinstance(piece.leaf, PissaDelta):
    rank //= 2
  a, b = jnp.zeros((2, rank)).at[0, 0].set(1), jnp.zeros((rank, 1)).at[0, 0].set(1)
  merged = piece.probe(form.like(a, b), {'kernel': jnp.asarray([[0.0], [1.0]])})
  return float(merged.main[0, 0] / merged.main[1, 0])


def _factors(piece: Piece, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """A and B at the scale of a layer."""
  a, b = map(array, _FORMS[type(piece.leaf)].factors(piece.leaf))
  return a, b * np.float32(scale_in(piece) / scale)


def _used(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The ranks that are not zero in both factors, as EVA leaves some: one at least."""
  used = np.logical_or(a.any(0), b.any(1))
  used[0] |= not used.any()
  return a[:, used], b[used]


def _write(layers: Sequence[Layer], model: Model) -> Written:
  """Tensors by name, and the configuration, of LoRA, DoRA and PiSSA."""
  tensors, ranks, alphas = {}, {}, {}
  doras = [isinstance(layer.leaf, DoraDelta) for layer in layers]
  if any(doras) and not all(doras):
    raise ValueError('huggingface/peft has magnitudes at all layers of an adapter or at none')
  for layer, has_magnitude in zip(layers, doras, strict=True):
    # Where q, k and v are one layer, the ratios to the scale of the first go into B.
    scale = scale_in(layer.parts[0].piece)
    a, b = _used(*joined_once(layer, lambda piece, scale=scale: _factors(piece, scale)))
    tensors[f'{layer.name}.lora_A.weight'] = a.T
    tensors[f'{layer.name}.lora_B.weight'] = b.T
    ranks[layer.name] = a.shape[1]
    alphas[layer.name] = tidy(scale * a.shape[1])
    if has_magnitude:
      assert model.params is not None
      tensors[f'{layer.name}.lora_magnitude_vector'] = _magnitudes(layer, model.params)
  rank, other_ranks = most_frequent(ranks)
  alpha, other_alphas = most_frequent(alphas)
  return Written(tensors, {
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': other_ranks,
    'alpha_pattern': other_alphas,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': any(doras),
  })  # fmt: skip


def _magnitudes(layer: Layer, frozen: Params) -> np.ndarray:
  """[d_out] of a layer; for a third that is not adapted, the column norms of its weight."""
  sites = {part.third: np.asarray(part.piece.leaf.magnitude) for part in layer.parts}
  if len(sites) < len(layer.parts):
    raise ValueError(f'two DoRAs act on {layer.name}: huggingface/peft knows one a layer')
  if None in sites:
    return sites[None]
  stem = layer.parts[0].piece.path.rpartition('/')[0]
  norms = lambda w: np.linalg.norm(array(w), axis=0)
  return np.concatenate([
    sites[i] if i in sites else norms(weights_of(frozen, f'{stem}/{letter}').main)
    for i, letter in enumerate('qkv')
  ])  # fmt: skip


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  settings = lora_config(found.config)
  read = _read_dora if settings.dora else _read_lora
  return read(settings, found)


def _read_lora(settings: Lora, found: Found) -> tuple[PeftTransform, Delta]:
  pairs: dict[str, LoraDelta] = {}
  ranks, alphas = {}, {}
  for name, tensors in found.layers.items():
    a, b = _pair(name, exactly(name, tensors, _PAIR, found.config))
    scale = scale_of(settings, name, a.shape[1])
    if not scale > 0:  # Zero, or a part that is taken away: into B.
      b, scale = b * np.float32(scale), 1.0
    for path, rows, cut in split(cuts(name, found.places[name], b.shape[1]), b):
      pairs[path] = LoraDelta(jnp.asarray(a[:, rows]), jnp.asarray(b[rows, cut]))
      # That of a fresh adapter, at most; sums of adapters may have more.
      ranks[path] = min(int(rows.sum()), max(pairs[path].a.shape[0], pairs[path].b.shape[1]))
      # The scale is then alpha / r, whether or not it was stabilised in the file.
      alphas[path] = tidy(scale * ranks[path])
  rank, other_ranks = most_frequent(ranks)
  alpha, other_alphas = most_frequent(alphas)
  peft = lora(
    pattern_of(pairs), rank, float(alpha), dropout=settings.dropout,
    ranks=_by_value(other_ranks), alphas=_by_value(other_alphas),
  )  # fmt: skip
  return peft, with_scales(
    pairs, {path: alphas[path] / ranks[path] for path in pairs}, alpha / rank
  )


def _by_value(values: Mapping[str, Any]) -> dict[str, Any]:
  """One pattern for each value of `{path: value}`."""
  paths = collections.defaultdict(list)
  for path, value in values.items():
    paths[value].append(path)
  return {pattern_of(same): value for value, same in paths.items()}


def _read_dora(settings: Lora, found: Found) -> tuple[PeftTransform, Delta]:
  root = math.sqrt(settings.rank) if settings.stabilised else settings.rank
  # The ratio of a layer's scale to the common one goes into its B; so does the sign.
  common = settings.alpha / root if settings.alpha > 0 else 1.0
  delta: Delta = {}
  for name, tensors in found.layers.items():
    *pair, magnitude = exactly(name, tensors, (*_PAIR, 'lora_magnitude_vector'), found.config)
    a, b = _pair(name, pair)
    b = b * np.float32(scale_of(settings, name, a.shape[1]) / common)
    check_finite(f'{name}.lora_B.weight times its scale', b)
    of_length(name, magnitude, b.shape[1])
    for place, cut in cuts(name, found.places[name], b.shape[1]):
      delta[place.path] = DoraDelta(*map(jnp.asarray, (a, b[:, cut], magnitude[cut])))
  most = most_frequent({path: leaf.a.shape[1] for path, leaf in delta.items()})[0]
  most = min(most, *(max(len(leaf.a), leaf.b.shape[1]) for leaf in delta.values()))
  return dora(pattern_of(delta), most, common * most), delta


_PAIR = ('lora_A.weight', 'lora_B.weight')


def _pair(name: str, pair: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """A [d_in, r] and B [r, d_out] of the tensors of a layer."""
  a, b = pair
  if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
    raise ValueError(
      f'{name}: expected lora_A [r, in] and lora_B [out, r], got {a.shape} and {b.shape}'
    )
  return a.T, b.T


LORA = HfType(
  'LORA',
  ('lora', 'rslora', 'dora', 'pissa', 'milora', 'orthonormal_lora', 'lora_fa', 'lora_xs', 'eva',
   'corda', 'lora_ga'),
  tuple(_FORMS),
  Keys(
    read=(
      'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'use_rslora', 'use_dora', 'lora_dropout',
    ),
    free=FREE,
    only=ONLY,
    why=WHY,
  ),
  r'lora_[AB]\.weight|lora_magnitude_vector',
  _write,
  _read,
  ranked={'a': 1, 'b': 0},
)  # fmt: skip
