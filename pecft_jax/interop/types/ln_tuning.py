"""LN_TUNING: norms with weights of their own."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.core import abstract_delta
from pecft_jax.interop.hf_layers import array, of_length
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.selective.select import ln_tuning, select_weights
from pecft_jax.peft.weights import read as weights_of
from pecft_jax.typing import Delta, PeftTransform

_SUFFIX = 'ln_tuning_layers'


def _write(layers: Sequence[Layer], model: Model) -> Written:
  norms = {model.naming.of(s.site.path).name for s in model.backbone.sites if s.site.kind == 'norm'}
  if others := sorted(layer.name for layer in layers if layer.name not in norms):
    raise ValueError(
      'huggingface/peft has new weights of norms, LN_TUNING, and none of biases alone or of other '
      f'layers: got plain arrays of {others[0]}'
    )
  assert model.params is not None
  tensors = {}
  for layer in layers:
    own = {path.rpartition('/')[2]: leaf for _, (path, leaf, *_) in layer.parts}
    site = layer.parts[0].piece.path.rpartition('/')[0]
    old = weights_of(model.params, site)
    tensors[f'{layer.name}.{_SUFFIX}.weight'] = array(own.get('scale', old.main))
    if old.bias is not None:
      tensors[f'{layer.name}.{_SUFFIX}.bias'] = array(own.get('bias', old.bias))
  return Written(tensors, {})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  delta: Delta = {}
  everything = abstract_delta(model.backbone, ln_tuning())
  for name, tensors in found.layers.items():
    (place,) = found.places[name]
    names = {'scale': f'{_SUFFIX}.weight', 'bias': f'{_SUFFIX}.bias'}
    has = {leaf: each for leaf, each in names.items() if f'{place.path}/{leaf}' in everything}
    if tensors.keys() != set(has.values()):
      raise ValueError(f'{name}: expected {" and ".join(has.values())}, got {sorted(tensors)}')
    for leaf, suffix in has.items():
      delta[f'{place.path}/{leaf}'] = jnp.asarray(of_length(name, tensors[suffix], *place.shape))
  if delta.keys() == everything.keys():
    return ln_tuning(), delta
  return select_weights(pattern_of(delta)), delta


LN_TUNING = HfType(
  'LN_TUNING',
  ('ln_tuning',),
  (jax.Array, np.ndarray),
  Keys(),
  rf'{_SUFFIX}\.(?:weight|bias)',
  _write,
  _read,
  kind='norm',
  replaces=True,
)
