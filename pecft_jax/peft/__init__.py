"""Parameter-efficient fine-tuning as pure functions: transforms, and what is done with them.

Flax linen modules that are not of this library: `pecft_jax.peft.linen_bridge`.
"""

from pecft_jax.peft.adapters.bottleneck import (
  adaptformer,
  bottleneck,
  houlsby,
  parallel_adapter,
  pfeiffer,
)
from pecft_jax.peft.compose import at_layers, bank, chain, mix, nothing, take
from pecft_jax.peft.halves import combine, mask_of, masked, partition
from pecft_jax.peft.lowrank.dora import dora
from pecft_jax.peft.lowrank.lora import lora, rslora
from pecft_jax.peft.lowrank.vera import vera
from pecft_jax.peft.merge import Merged, merge_error, merged, unmerge
from pecft_jax.peft.registry import PEFTS, summaries
from pecft_jax.peft.scaling.ia3 import ia3, scaled_inputs, scaled_outputs
from pecft_jax.peft.scaling.ssf import ssf
from pecft_jax.peft.selective.select import (
  bitfit,
  full,
  linear_probe,
  ln_tuning,
  partial,
  select_weights,
)
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.tokens.prefix import prefix
from pecft_jax.peft.tokens.prompt import prompt, prompt_tuning, vpt_deep, vpt_shallow
from pecft_jax.peft.weights import Weights, weight_sites

__all__ = [
  'PEFTS',
  'Merged',
  'Weights',
  'adaptformer',
  'at_layers',
  'bank',
  'bitfit',
  'bottleneck',
  'chain',
  'combine',
  'dora',
  'full',
  'houlsby',
  'ia3',
  'linear_probe',
  'ln_tuning',
  'lora',
  'mask_of',
  'masked',
  'merge_error',
  'merged',
  'mix',
  'nothing',
  'parallel_adapter',
  'partial',
  'partition',
  'per_site',
  'pfeiffer',
  'prefix',
  'prompt',
  'prompt_tuning',
  'rslora',
  'scaled_inputs',
  'scaled_outputs',
  'select_weights',
  'ssf',
  'summaries',
  'take',
  'unmerge',
  'vera',
  'vpt_deep',
  'vpt_shallow',
  'weight_sites',
]
