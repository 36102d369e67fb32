"""IA3: (IA)^3."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import cuts, exactly
from pecft_jax.interop.hf_peft_config import bounded
from pecft_jax.interop.hf_type import OFF, Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.pieces import Piece
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.peft.compose import chain
from pecft_jax.peft.scaling.ia3 import Ia3Delta, scaled_inputs, scaled_outputs
from pecft_jax.typing import Delta, PeftTransform


def of_inputs(piece: Piece) -> bool:
  """Whether a factor leaves the bias alone, which belongs to the outputs."""
  node = {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones(1)}
  return float(piece.probe(Ia3Delta(jnp.full(1, 2.0)), node).bias[0]) == 1.0


def scales_inputs(config: Mapping[str, Any], name: str) -> bool | None:
  """Whether (IA)^3 scales the inputs of a layer; None where the configuration does not say.

  As in peft, names of a list match any end of a layer's name, not only at a dot.

  Raises:
    ValueError: for an entry that is no text and no list of texts.
  """
  found = config.get('feedforward_modules')
  if found is None:
    return None
  if isinstance(found, str):
    return re.fullmatch(bounded('feedforward_modules', found), name) is not None
  if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
    raise ValueError(f'expected a text or a list of texts for feedforward_modules, got {found!r}')
  return any(name.endswith(each) for each in found)


def _write(layers: Sequence[Layer], model: Model) -> Written:
  del model
  tensors, feedforward = {}, []
  for layer in layers:
    name = layer.name
    inputs = {of_inputs(part.piece) for part in layer.parts}
    if len(inputs) > 1 or (True in inputs and layer.thirds > 1):
      raise ValueError(
        f'huggingface/peft scales either all inputs of {name} or its outputs, not parts or both'
      )
    scales: dict[int, np.ndarray] = {}
    for third, piece in layer.parts:
      scales[third or 0] = scales.get(third or 0, 1) * np.asarray(piece.leaf.scale)
    if True in inputs:
      feedforward.append(name)
      tensors[f'{name}.ia3_l'] = scales[0][None, :]
      continue
    ones = np.ones(len(next(iter(scales.values()))), np.float32)
    rows = [scales.get(third, ones) for third in range(layer.thirds)]
    tensors[f'{name}.ia3_l'] = np.concatenate(rows)[:, None]
  return Written(tensors, {'feedforward_modules': sorted(feedforward)})


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  del model
  delta: dict[str, Delta] = {'outputs': {}, 'inputs': {}}
  for name, tensors in found.layers.items():
    (scale,) = exactly(name, tensors, ('ia3_l',), found.config)
    # [1, d_in] of a feed-forward module, otherwise [d_out, 1].
    if scale.ndim != 2 or 1 not in scale.shape:
      raise ValueError(f'{name}: expected ia3_l [out, 1] or [1, in], got {scale.shape}')
    inputs = scale.shape[0] == 1
    if scales_inputs(found.config, name) not in (None, inputs):
      raise ValueError(
        f'{name}: feedforward_modules is {found.config["feedforward_modules"]}, but ia3_l has '
        f'shape {scale.shape}'
      )
    places = found.places[name]
    if inputs:
      if len(places) > 1:
        raise ValueError(f'{name}: the inputs of q, k and v in one layer cannot be scaled here')
      delta['inputs'][places[0].path] = Ia3Delta(jnp.asarray(scale[0]))
      continue
    for place, cut in cuts(name, places, len(scale)):
      delta['outputs'][place.path] = Ia3Delta(jnp.asarray(scale[cut, 0]))
  factories = {'outputs': scaled_outputs, 'inputs': scaled_inputs}
  delta = {part: leaves for part, leaves in delta.items() if leaves}
  peft = chain(**{part: factories[part](pattern_of(each)) for part, each in delta.items()})
  return peft, delta


IA3 = HfType(
  'IA3',
  ('ia3',),
  (Ia3Delta,),
  Keys(read=('feedforward_modules',), free=('init_ia3_weights',), only={'fan_in_fan_out': OFF}),
  r'ia3_l',
  _write,
  _read,
)
