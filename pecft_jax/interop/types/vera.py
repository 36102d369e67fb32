"""VERA: scalings of random factors that all layers share.

There, a layer of q, k and v reads three times as many columns of B as a site here, and has one
scaling of the ranks for all three. It is written with the ranks repeated: those of q, k and v reach
the columns of their third only, and a last copy serves the other layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, cuts, each_layer, of_length, of_shape, same
from pecft_jax.interop.hf_layers import side_by_side as beside
from pecft_jax.interop.hf_peft_config import finite, whole
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Place, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.vera import VeraDelta, shared_factors, vera
from pecft_jax.typing import Delta, PeftTransform


class _Sizes(NamedTuple):
  """Of the layers that are adapted."""

  d_in: int  # The largest.
  d_out: int  # The largest of those that are one site; 0 for none.
  third: int  # d_out of q, k and v in one layer; 0 for none.

  @property
  def copies(self) -> int:
    """How often the ranks are repeated."""
    return 3 * bool(self.third) + bool(self.d_out)

  def copy(self, third: int | None) -> int:
    """The copy of the ranks that a site reads."""
    return self.copies - 1 if third is None else third


def _sizes(places: Mapping[str, Sequence[Place]]) -> _Sizes:
  every = [place for each in places.values() for place in each]
  return _Sizes(
    max(place.shape[0] for place in every),
    max((place.shape[1] for place in every if place.third is None), default=0),
    max((place.shape[1] for place in every if place.third is not None), default=0),
  )


def _repeated(a: np.ndarray, b: np.ndarray, sizes: _Sizes) -> tuple[np.ndarray, np.ndarray]:
  """A [d_in, R] and B [R, largest d_out] as in the file."""
  rank = a.shape[1]
  whole_b = np.zeros((sizes.copies, rank, max(3 * sizes.third, sizes.d_out)), np.float32)
  for third in range(3 * bool(sizes.third)):
    cut = slice(third * sizes.third, (third + 1) * sizes.third)
    whole_b[third, :, cut] = b[:, : sizes.third]
  if sizes.d_out:
    whole_b[-1, :, : sizes.d_out] = b[:, : sizes.d_out]
  return np.tile(a, sizes.copies), whole_b.reshape(sizes.copies * rank, -1)


def _drawn(seed: int, rank: int, sizes: _Sizes, fan_in: int) -> tuple[np.ndarray, np.ndarray]:
  width = max(sizes.d_out, sizes.third)
  a, b = shared_factors(seed, rank, sizes.d_in, width, fan_in=fan_in)
  return array(a), array(b)


def _write(layers: Sequence[Layer], model: Model) -> Written:
  pieces = [part.piece for layer in layers for part in layer.parts]
  option = lambda name: same(((piece.path, piece.option(name)) for piece in pieces), name)
  rank, seed = option('rank'), option('seed')
  shapes = {s.site.path: s.args[1].shape for s in model.backbone.sites if s.site.kind == 'linear'}
  sizes = _sizes({
    layer.name: [Place(third, piece.path, shapes[piece.path]) for third, piece in layer.parts]
    for layer in layers
  })  # fmt: skip
  if any(piece.option('factors') is not None for piece in pieces):
    raise ValueError('factors that were given are not told by the transform: save the seed instead')
  a, b = _repeated(*_drawn(seed, rank, sizes, option('fan_in') or sizes.d_in), sizes)
  tensors = {}
  for layer in layers:
    inner = np.zeros((sizes.copies, rank), np.float32)
    for third, piece in layer.parts:
      inner[sizes.copy(third)] = array(piece.leaf.inner)
    tensors[f'{layer.name}.vera_lambda_d'] = inner.reshape(-1)
    tensors[f'{layer.name}.vera_lambda_b'] = beside(layer, lambda piece: piece.leaf.outer, 0)
  config = {
    'r': sizes.copies * rank,
    'projection_prng_key': seed,
    'save_projection': True,
    'vera_dropout': 0.0,
    'bias': 'none',
  }
  return Written(tensors, config, shared={'vera_A': a.T, 'vera_B': b.T})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank, sizes = whole('r', found.config.get('r')), _sizes(found.places)
  seed = finite('projection_prng_key', found.config.get('projection_prng_key', 0))
  missing = {'vera_A', 'vera_B'} - found.shared.keys()
  if missing:
    raise ValueError(f'it has no {" and ".join(sorted(missing))}: save it with save_projection')
  a = of_shape('vera_A', found.shared['vera_A'], (rank, sizes.d_in)).T
  b = of_shape('vera_B', found.shared['vera_B'], (max(3 * sizes.third, sizes.d_out), rank)).T
  vectors: dict[str, tuple[Place, slice, np.ndarray, np.ndarray]] = {}
  for name, (inner, outer) in each_layer(found, ('vera_lambda_d', 'vera_lambda_b')):
    of_length(f'{name}.vera_lambda_d', inner, rank)
    for place, cut in cuts(name, found.places[name], len(outer)):
      vectors[place.path] = place, cut, inner, outer[cut]
  ours = _as_written(vectors, a, b, seed, sizes)
  return _given(vectors, a, b, sizes) if ours is None else ours


def _as_written(
  vectors: Mapping[str, Any], a: np.ndarray, b: np.ndarray, seed: float, sizes: _Sizes
) -> tuple[PeftTransform, Delta] | None:
  """An adapter of this library; None where the factors are not those of the seed."""
  copies, whole_rank = sizes.copies, a.shape[1]
  if whole_rank % copies or not isinstance(seed, int) or seed < 0:
    return None
  rank = whole_rank // copies
  own = _repeated(*_drawn(seed, rank, sizes, sizes.d_in), sizes)
  if not (np.array_equal(own[0], a) and np.array_equal(own[1], b)):
    return None
  delta: Delta = {}
  for path, (place, _, inner, outer) in vectors.items():
    own_inner = inner.reshape(copies, rank)[sizes.copy(place.third)]
    if place.third is None or own_inner.any():
      delta[path] = VeraDelta(jnp.asarray(own_inner), jnp.asarray(outer))
  return vera(pattern_of(delta), rank, seed=seed, fan_in=sizes.d_in), delta


def _given(
  vectors: Mapping[str, Any], a: np.ndarray, b: np.ndarray, sizes: _Sizes
) -> tuple[PeftTransform, Delta]:
  """Of other factors; ranks that are not of a site's third are scaled by zero."""
  rank, copies = a.shape[1], sizes.copies
  width = max(sizes.d_out, sizes.third)
  parts = np.zeros((copies, rank, width), np.float32)
  for third in range(3 * bool(sizes.third)):
    parts[third, :, : sizes.third] = b[:, third * sizes.third : (third + 1) * sizes.third]
  if sizes.d_out:
    parts[-1, :, : sizes.d_out] = b[:, : sizes.d_out]
  delta: Delta = {}
  for path, (place, _, inner, outer) in vectors.items():
    each = np.zeros((copies, rank), np.float32)
    each[sizes.copy(place.third)] = inner
    delta[path] = VeraDelta(jnp.asarray(each.reshape(-1)), jnp.asarray(outer))
  factors = jnp.asarray(np.tile(a, copies)), jnp.asarray(parts.reshape(copies * rank, width))
  return vera(pattern_of(delta), copies * rank, factors=factors), delta


VERA = HfType(
  'VERA',
  ('vera',),
  (VeraDelta,),
  Keys(
    read=('r', 'projection_prng_key'),
    free=('vera_dropout', 'd_initial', 'init_weights'),
    only={'save_projection': (True,), 'bias': PLAIN, 'fan_in_fan_out': OFF},
    why={'save_projection': 'factors that are not in the file depend on a generator of torch'},
  ),
  'vera_lambda_[bd]',
  _write,
  _read,
  shared='vera_[AB]',
)
