"""Pre-trained models as pure functions with named sites."""

from pecft_jax.backbones.card import (
  Card,
  architecture,
  cards,
  find_card,
  pretrained,
  random_weights,
  read_card,
)
from pecft_jax.backbones.core.checkpoint import Checkpoint
from pecft_jax.backbones.core.family import Family
from pecft_jax.backbones.core.loftq import Loftq, loftq
from pecft_jax.backbones.core.naming import Module, Naming
from pecft_jax.backbones.core.quantise import quantised
from pecft_jax.backbones.core.stacks import products_and_sums, stack_blocks, unstack_blocks
from pecft_jax.backbones.families.decoder.config import read_llama_config
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.decoder.names import load_llama, save_llama
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.backbones.families.vit.names import load_timm, save_timm
from pecft_jax.backbones.registry import FAMILIES, family_of
from pecft_jax.typing import Pretrained

__all__ = (
  'FAMILIES',
  'Card',
  'Checkpoint',
  'Family',
  'Loftq',
  'Module',
  'Naming',
  'Pretrained',
  'architecture',
  'cards',
  'decoder',
  'family_of',
  'find_card',
  'load_llama',
  'load_timm',
  'loftq',
  'pretrained',
  'products_and_sums',
  'quantised',
  'random_weights',
  'read_card',
  'read_llama_config',
  'save_llama',
  'save_timm',
  'stack_blocks',
  'unstack_blocks',
  'vit',
)
