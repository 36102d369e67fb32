"""Vision transformers, as a family."""

from pecft_jax.backbones.core.family import Family
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.backbones.families.vit.names import TIMM_VIT, load_timm, save_timm

VIT = Family('vit', vit, load_timm, save_timm, TIMM_VIT, ('mean', 'std'))
