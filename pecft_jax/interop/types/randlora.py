"""RANDLORA: the sum of random low-rank products with trained scalings."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, each_layer, of_shape, only, same
from pecft_jax.interop.hf_peft_config import finite, given, share, tidy, whole
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.lowrank.randlora import RandloraDelta, randlora, random_bases
from pecft_jax.typing import Delta, PeftTransform

_ONE = 'there, the products are of all three together'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  pieces = {layer.name: only(layer, _ONE) for layer in layers}
  option = lambda name: same(((at, piece.option(name)) for at, piece in pieces.items()), name)
  rank, alpha, seed = option('rank'), option('alpha'), option('seed')
  if any(piece.option('bases') is not None for piece in pieces.values()):
    raise ValueError('bases that were given are not told by the transform: use those of a seed')
  paths = {piece.path for piece in pieces.values()}
  specs = [s for s in model.backbone.sites if s.site.kind == 'linear' and s.site.path in paths]
  shapes = [spec.args[1].shape for spec in specs]
  most_in, most_out = (max(sides) for sides in zip(*shapes, strict=True))
  a, b = random_bases(seed, rank, *sorted((most_in, most_out)))
  tensors = {}
  for name, piece in pieces.items():
    tensors[f'{name}.randlora_lambda'] = array(piece.leaf.rows)
    tensors[f'{name}.randlora_gamma'] = array(piece.leaf.columns)
  config = {
    'r': rank,
    'randlora_alpha': tidy(20.0 * rank if alpha is None else alpha),
    'projection_prng_key': seed,
    'save_projection': True,
    'randlora_dropout': 0.0,
    'bias': 'none',
  }
  shared = {'randlora_A': array(a)[:, None], 'randlora_B': array(b)}
  return Written(tensors, config, shared=shared)


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  rank = whole('r', found.config.get('r'))
  alpha = finite('randlora_alpha', found.config.get('randlora_alpha'))
  seed = found.config.get('projection_prng_key', 0)
  dropout = share('randlora_dropout', given(found.config, 'randlora_dropout', 0.0))
  if missing := {'randlora_A', 'randlora_B'} - found.shared.keys():
    raise ValueError(f'it has no {" and ".join(sorted(missing))}: save it with save_projection')
  a = of_shape('randlora_A', found.shared['randlora_A'], (rank, 1, None))[:, 0]
  b = of_shape('randlora_B', found.shared['randlora_B'], (None, None, rank))
  delta: Delta = {}
  again = ('randlora_A', 'randlora_B')  # Written once more at each layer.
  for name, (rows, columns, *_) in each_layer(found, ('randlora_lambda', 'randlora_gamma'), again):
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    delta[place.path] = RandloraDelta(jnp.asarray(rows), jnp.asarray(columns))
  pattern, bases = pattern_of(delta), None
  if not isinstance(seed, int) or seed < 0 or not _of_seed(seed, rank, a, b):
    bases, seed = (jnp.asarray(a), jnp.asarray(b)), 0
  peft = randlora(pattern, rank, float(alpha), seed=seed, dropout=dropout, bases=bases)
  return peft, delta


def _of_seed(seed: int, rank: int, a: np.ndarray, b: np.ndarray) -> bool:
  own = random_bases(seed, rank, a.shape[1], b.shape[0])
  return all(np.array_equal(array(x), y) for x, y in zip(own, (a, b), strict=True))


RANDLORA = HfType(
  'RANDLORA',
  ('randlora',),
  (RandloraDelta,),
  Keys(
    read=('r', 'randlora_alpha', 'projection_prng_key', 'randlora_dropout'),
    free=('init_weights', 'sparse', 'very_sparse'),
    only={'save_projection': (True,), 'bias': PLAIN, 'fan_in_fan_out': OFF},
    why={'save_projection': 'bases that are not in the file depend on a generator of torch'},
  ),
  'randlora_(?:lambda|gamma|A|B)',
  _write,
  _read,
  shared='randlora_[AB]',
)
