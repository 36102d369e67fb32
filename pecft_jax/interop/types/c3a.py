"""C3A: updates of circulant blocks."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import cuts, each_layer, of_shape, same, side_by_side
from pecft_jax.interop.hf_type import PLAIN, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.spectral.c3a import C3aDelta, c3a
from pecft_jax.typing import Delta, PeftTransform


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  pieces = [part.piece for layer in layers for part in layer.parts]
  block = same(((piece.path, piece.leaf.kernel.shape[-1]) for piece in pieces), 'size of blocks')
  tensors = {
    # Blocks of outputs first: those of q, k and v follow one another.
    f'{layer.name}.c3a_kernel': np.moveaxis(
      side_by_side(layer, lambda piece: np.moveaxis(np.asarray(piece.leaf.kernel), 0, -1), 0), -1, 0
    )
    for layer in layers
  }
  return Written(tensors, {'block_size': block, 'block_size_pattern': {}, 'bias': 'none'})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  delta: Delta = {}
  blocks = {}
  for name, (kernel,) in each_layer(found, ('c3a_kernel',)):
    of_shape(f'{name}.c3a_kernel', kernel, (None, None, None))
    blocks[name] = kernel.shape[2]
    for place, cut in cuts(name, found.places[name], len(kernel)):
      if kernel[cut].any() or not kernel.any():
        delta[place.path] = C3aDelta(jnp.asarray(kernel[cut]))
  if len(set(blocks.values())) > 1:
    raise ValueError(f'expected blocks of one size at all layers, got {blocks}')
  return c3a(pattern_of(delta), next(iter(blocks.values()))), delta


C3A = HfType(
  'C3A',
  ('c3a',),
  (C3aDelta,),
  Keys(free=('block_size', 'block_size_pattern', 'init_weights'), only={'bias': PLAIN}),
  'c3a_kernel',
  _write,
  _read,
)
