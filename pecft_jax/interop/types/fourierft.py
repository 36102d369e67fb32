"""FOURIERFT: updates with a sparse spectrum."""

from collections.abc import Sequence

import jax.numpy as jnp

from pecft_jax.interop.hf_layers import array, each_layer, of_length, only, same
from pecft_jax.interop.hf_peft_config import finite, given
from pecft_jax.interop.hf_type import OFF, PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.spectral.fourierft import FourierftDelta, fourierft
from pecft_jax.typing import Delta, PeftTransform

_ONE = 'there, frequencies are of all three together'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = {layer.name: only(layer, _ONE) for layer in layers}
  option = lambda name: same(((at, piece.option(name)) for at, piece in pieces.items()), name)
  tensors = {f'{n}.fourierft_spectrum': array(p.leaf.spectrum) for n, p in pieces.items()}
  return Written(tensors, {
    'n_frequency': option('count'),
    'n_frequency_pattern': {},
    'scaling': option('scale'),
    'random_loc_seed': option('seed'),
    'bias': 'none',
  })  # fmt: skip


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  scale = finite('scaling', given(found.config, 'scaling', 150.0))
  seed = given(found.config, 'random_loc_seed', 777)
  if isinstance(seed, bool) or not isinstance(seed, int):
    raise ValueError(f'expected a whole number for random_loc_seed, got {seed!r}')
  counts = {name: tensors.get('fourierft_spectrum') for name, tensors in found.layers.items()}
  sizes = {name: each.size for name, each in counts.items() if each is not None}
  if len(set(sizes.values())) > 1:
    raise ValueError(f'expected as many coefficients at all layers, got {sizes}')
  count = next(iter(sizes.values()), 1)
  delta: Delta = {}
  for name, (spectrum,) in each_layer(found, ('fourierft_spectrum',)):
    (place, *more) = found.places[name]
    if more:
      raise ValueError(f'{name} is q, k and v in one layer: {_ONE}')
    delta[place.path] = FourierftDelta(
      jnp.asarray(of_length(f'{name}.fourierft_spectrum', spectrum, count))
    )
  return fourierft(pattern_of(delta), count, float(scale), seed=seed), delta


FOURIERFT = HfType(
  'FOURIERFT',
  ('fourierft',),
  (FourierftDelta,),
  Keys(
    read=('scaling', 'random_loc_seed'),
    free=('n_frequency', 'n_frequency_pattern', 'init_weights'),
    only={'bias': PLAIN, 'fan_in_fan_out': OFF},
  ),
  'fourierft_spectrum',
  _write,
  _read,
)
