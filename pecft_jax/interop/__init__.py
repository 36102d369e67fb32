"""Adapters in and out of the formats of other libraries."""

from pecft_jax.interop.hf_peft_load import load_hf_peft
from pecft_jax.interop.hf_peft_save import save_hf_peft
from pecft_jax.interop.modules import LLAMA, TIMM_VIT, Module, Naming, naming_of

__all__ = ('LLAMA', 'TIMM_VIT', 'Module', 'Naming', 'load_hf_peft', 'naming_of', 'save_hf_peft')
