"""Adapters in and out of the formats of other libraries."""

from pecft_jax.interop.hf_banks import AdapterBank, load_hf_bank, save_hf_bank
from pecft_jax.interop.hf_peft_load import load_hf_peft
from pecft_jax.interop.hf_peft_save import save_hf_peft
from pecft_jax.interop.modules import LLAMA, TIMM_VIT, Module, Naming, naming_of

__all__ = (
  'LLAMA',
  'TIMM_VIT',
  'AdapterBank',
  'Module',
  'Naming',
  'load_hf_bank',
  'load_hf_peft',
  'naming_of',
  'save_hf_bank',
  'save_hf_peft',
)
