"""Vision transformers, as a family."""

from pecft_jax.axes import LayerSplit
from pecft_jax.backbones.core.family import Family
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.backbones.families.vit.names import TIMM_VIT, load_timm, save_timm

SPLIT = LayerSplit(columns=r'(attn/(q|k|v|qkv)|mlp/fc1)', rows=r'(attn/out|mlp/fc2)')

VIT = Family('vit', vit, load_timm, save_timm, TIMM_VIT, SPLIT, ranges=('mean', 'std'))
