"""ADAPTION_PROMPT: LLaMA-Adapter, a prompt for each of the last layers (arXiv:2303.16199).

There, a prompt is trained, of which the frozen layer makes keys and values; here keys and values
themselves are. A prompt with given keys and values exists where the layer has at most as many of
both together as inputs, as with grouped queries; it is the smallest. Otherwise only those that came
from a prompt can be written.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from pecft_jax.interop.hf_layers import array, each_layer, of_shape, same
from pecft_jax.interop.hf_peft_config import whole
from pecft_jax.interop.hf_type import Found, HfType, Keys, Layer, Model, Written
from pecft_jax.interop.modules import attention_name
from pecft_jax.interop.transforms import pattern_of
from pecft_jax.interop.types.prompt_tuning import check_texts
from pecft_jax.peft.tokens.llama_adapter import LlamaAdapterDelta, llama_adapter
from pecft_jax.peft.weights import read as weights_of
from pecft_jax.typing import Delta, PeftTransform

_NAMES = ('adaption_prompt', 'adaption_gate')
_RTOL = 1e-5  # Of keys and values that are made of a prompt in float32.


def _write(layers: Sequence[Layer], model: Model) -> Written:
  check_texts(model, 'ADAPTION_PROMPT')
  paths = [layer.name for layer in layers]
  last = _attentions(model)[-len(paths) :]
  if sorted(paths) != sorted(last):
    raise ValueError(
      f'huggingface/peft adapts the last layers, which are {last}, got {paths}: take '
      'at_layers(llama_adapter(), ...) of these'
    )
  length = same(((layer.name, layer.leaf.k.shape[0]) for layer in layers), 'length')
  tensors = {}
  for layer in layers:
    name = attention_name(model.naming, layer.name)
    prompt = _prompt(layer.name, layer.leaf, model)
    tensors |= {f'{name}.{_NAMES[0]}': prompt[None], f'{name}.{_NAMES[1]}': array(layer.leaf.gate)}
  return Written(
    tensors,
    {
      'target_modules': attention_name(model.naming, paths[0]).rpartition('.')[2],
      'adapter_len': length,
      'adapter_layers': len(paths),
    },
  )


def _prompt(path: str, leaf: LlamaAdapterDelta, model: Model) -> np.ndarray:
  """[P, D], of which the layer makes these keys and values."""
  kernel, bias = _projections(path, model)
  wanted = np.concatenate([array(each).reshape(len(each), -1) for each in (leaf.k, leaf.v)], 1)
  prompt = np.linalg.lstsq(kernel.T, (wanted - bias).T, rcond=None)[0].T.astype(np.float32)
  gap = np.abs(prompt @ kernel + bias - wanted).max()
  if gap > _RTOL * max(1.0, np.abs(wanted).max()):
    raise ValueError(
      f'{path}: no prompt has these keys and values, {gap:.1e} away from the nearest: '
      f'huggingface/peft makes the {kernel.shape[1]} numbers of each of a prompt of {len(kernel)}'
    )
  return prompt


def _read(found: Found, model: Model) -> tuple[PeftTransform, Delta]:
  check_texts(model, 'ADAPTION_PROMPT')
  length = whole('adapter_len', found.config.get('adapter_len'))
  count = whole('adapter_layers', found.config.get('adapter_layers'))
  last = set(_attentions(model)[-count:])
  delta: Delta = {}
  for name, (prompt, gate) in each_layer(found, _NAMES):
    (place,) = found.places[name]
    of_shape(f'{name}.{_NAMES[0]}', prompt, (1, length, model.backbone.width))
    of_shape(f'{name}.{_NAMES[1]}', gate, (1,))
    kernel, bias = _projections(place.path, model)
    both = (prompt[0] @ kernel + bias).astype(np.float32)
    k, v = (jnp.asarray(each.reshape(length, *place.shape[2:])) for each in np.split(both, 2, 1))
    delta[place.path] = LlamaAdapterDelta(k, v, jnp.asarray(gate))
  if delta.keys() != last:
    raise ValueError(f'adapter_layers is {count}, but it has prompts at {sorted(delta)}')
  return llama_adapter(pattern_of(delta), length), delta


def _attentions(model: Model) -> list[str]:
  """Paths of all attentions, in the order of the layers."""
  specs = [spec for spec in model.backbone.sites if spec.site.kind == 'attend']
  return [spec.site.path for spec in sorted(specs, key=lambda spec: spec.site.layer or 0)]


def _projections(path: str, model: Model) -> tuple[np.ndarray, np.ndarray]:
  """The layer's [D, 2 Hkv K] and [2 Hkv K] that make keys and values, in float64."""
  if model.params is None:
    raise ValueError(
      "ADAPTION_PROMPT has prompts, of which a layer's weights make keys and values: give params"
    )
  pair = [weights_of(model.params, f'{path}/{name}') for name in 'kv']
  kernel = np.concatenate([np.asarray(array(each.main), np.float64) for each in pair], 1)
  zeros = lambda each: np.zeros(each.main.shape[1])
  bias = [zeros(each) if each.bias is None else array(each.bias) for each in pair]
  return kernel, np.concatenate(bias)


ADAPTION_PROMPT = HfType(
  'ADAPTION_PROMPT',
  ('llama_adapter',),
  (LlamaAdapterDelta,),
  Keys(read=('adapter_len', 'adapter_layers')),
  'adaption_(?:prompt|gate)',
  _write,
  _read,
  kind='attend',
  classifier=False,
)
