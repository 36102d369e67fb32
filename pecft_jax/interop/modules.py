"""Names of a backbone's sites in the models of other libraries."""

from pecft_jax.backbones.core.naming import Module, Naming
from pecft_jax.backbones.families.decoder.names import LLAMA
from pecft_jax.backbones.families.vit.names import TIMM_VIT
from pecft_jax.backbones.registry import family_of
from pecft_jax.typing import Backbone

__all__ = ('LLAMA', 'TIMM_VIT', 'Module', 'Naming', 'attention_name', 'naming_of')


def attention_name(naming: Naming, path: str) -> str:
  """The layer that holds the projections of an attention.

  >>> attention_name(LLAMA, 'block_3/attn')
  'model.layers.3.self_attn'
  """
  return naming.of(f'{path}/q').name.rpartition('.')[0]


def naming_of(backbone: Backbone) -> Naming:
  """The naming of the backbone's family: `TIMM_VIT` for a ViT, `LLAMA` for a decoder.

  Args:
    backbone: a `vit`, a `decoder`, or what a card describes.

  Raises:
    ValueError: for a model of your own, which has no family: pass its naming instead.

  >>> from pecft_jax.backbones import architecture
  >>> naming_of(architecture('vit_glyphs16')).of('block_3/attn/v')
  Module(name='blocks.3.attn.qkv', third=2)
  """
  return family_of(backbone).naming
