"""What a backbone's sites are called in the models of other libraries."""

import re
from collections.abc import Callable
from typing import NamedTuple

from pecft_jax.backbones.families.decoder.names import llama_name
from pecft_jax.backbones.families.vit.names import timm_name
from pecft_jax.typing import Backbone

_THIRDS = {'q': 0, 'k': 1, 'v': 2}


class Module(NamedTuple):
  """A linear layer of another library, or a part of one."""

  name: str
  third: int | None  # Of the outputs, where q, k and v are one layer; None: all of them.


class Naming(NamedTuple):
  """How another library names the parts of a model.

  Attributes:
    of: `(site path) -> Module`.
    convolutions: sites that are no linear layers there.
    head: name of the classifier.
    model: in words, what a saved adapter can be put on.
  """

  of: Callable[[str], Module]
  convolutions: tuple[str, ...]
  head: str
  model: str


def timm_module(path: str) -> Module:
  """timm's vision transformers: `block_3/attn/q` is the first third of `blocks.3.attn.qkv`."""
  name = timm_name(f'{path}/kernel').removesuffix('.weight')
  if found := re.fullmatch(r'(.*\.attn)\.(q|k|v)', name):
    return Module(f'{found[1]}.qkv', _THIRDS[found[2]])
  return Module(name, None)


def llama_module(path: str) -> Module:
  """transformers' Llama: `block_3/attn/q` is `model.layers.3.self_attn.q_proj`."""
  return Module(llama_name(f'{path}/kernel').removesuffix('.weight'), None)


TIMM_VIT = Naming(timm_module, ('patch',), 'head', "timm's VisionTransformer")
LLAMA = Naming(llama_module, (), 'score', "transformers' LlamaForSequenceClassification")


def naming_of(backbone: Backbone) -> Naming:
  """That of the library's own model families: `TIMM_VIT`, or `LLAMA` for a decoder."""
  return TIMM_VIT if backbone.inputs.pad is None else LLAMA
