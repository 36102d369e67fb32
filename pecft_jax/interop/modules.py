"""What a backbone's sites are called in the models of other libraries."""

from pecft_jax.backbones.core.naming import Module, Naming
from pecft_jax.backbones.families.decoder.names import LLAMA
from pecft_jax.backbones.families.vit.names import TIMM_VIT
from pecft_jax.backbones.registry import family_of
from pecft_jax.typing import Backbone

__all__ = ('LLAMA', 'TIMM_VIT', 'Module', 'Naming', 'naming_of')


def naming_of(backbone: Backbone) -> Naming:
  """That of the backbone's family: `TIMM_VIT` for a vision transformer, `LLAMA` for a decoder.

  Raises:
    ValueError: for a model of your own, which is of no family: give its naming.
  """
  return family_of(backbone).naming
