"""The transforms by name, for the command line."""

from collections.abc import Callable

from pecft_jax.peft.adapters.bottleneck import adaptformer, houlsby, parallel_adapter, pfeiffer
from pecft_jax.peft.lowrank.dora import dora
from pecft_jax.peft.lowrank.lora import lora, rslora
from pecft_jax.peft.lowrank.vera import vera
from pecft_jax.peft.scaling.ia3 import ia3
from pecft_jax.peft.scaling.ssf import ssf
from pecft_jax.peft.selective.select import bitfit, full, linear_probe, ln_tuning
from pecft_jax.peft.tokens.prefix import prefix
from pecft_jax.peft.tokens.prompt import prompt_tuning, vpt_deep, vpt_shallow
from pecft_jax.typing import PeftTransform

# Each can be called without arguments, and adapts any transformer backbone of the library.
PEFTS: dict[str, Callable[..., PeftTransform]] = {
  'adaptformer': adaptformer,
  'bitfit': bitfit,
  'dora': dora,
  'full': full,
  'houlsby': houlsby,
  'ia3': ia3,
  'linear_probe': linear_probe,
  'ln_tuning': ln_tuning,
  'lora': lora,
  'parallel': parallel_adapter,
  'pfeiffer': pfeiffer,
  'prefix': prefix,
  'prompt': prompt_tuning,
  'rslora': rslora,
  'ssf': ssf,
  'vera': vera,
  'vpt_deep': vpt_deep,
  'vpt_shallow': vpt_shallow,
}


def summaries() -> dict[str, str]:
  """One line on each transform: the first of its docstring."""
  return {
    name: (factory.__doc__ or '').strip().partition('\n')[0] for name, factory in PEFTS.items()
  }
