"""All families of models. A new one is a folder in `families/` and its line here."""

from pecft_jax.backbones.core.family import Family
from pecft_jax.backbones.families.decoder.family import DECODER as DECODER
from pecft_jax.backbones.families.vit.family import VIT as VIT
from pecft_jax.typing import Backbone

FAMILIES: dict[str, Family] = {
  each.name: each for each in tuple(globals().values()) if isinstance(each, Family)
}


def family_of(backbone: Backbone) -> Family:
  """The family of a backbone.

  Args:
    backbone: a `vit`, a `decoder`, or what a card describes.

  Raises:
    ValueError: for a model of your own, which is in none of `FAMILIES`.

  >>> from pecft_jax.backbones import architecture
  >>> family_of(architecture('vit_glyphs16')).name
  'vit'
  """
  if backbone.family not in FAMILIES:
    raise ValueError(
      f'{backbone.name} belongs to no family of the library, so its layers and files have no '
      f'names in other formats; families: {sorted(FAMILIES)}'
    )
  return FAMILIES[backbone.family]
