"""Decoders of Llama's kind, as a family."""

from pecft_jax.axes import LayerSplit
from pecft_jax.backbones.core.family import Family
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.decoder.names import LLAMA, load_llama, save_llama

SPLIT = LayerSplit(
  columns=r'(attn/(q|k|v)|mlp/(gate|up))', rows=r'(attn/out|mlp/down)', tables=r'embed/table'
)

DECODER = Family('decoder', decoder, load_llama, save_llama, LLAMA, SPLIT)
