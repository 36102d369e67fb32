"""Methods and wrappers by name, for command lines and listings."""

from collections.abc import Callable

from pecft_jax.continual.adapters.ease import ease
from pecft_jax.continual.bounds.finetune import finetune, joint
from pecft_jax.continual.lowrank.olora import olora
from pecft_jax.continual.prompts.l2p import l2p
from pecft_jax.continual.statistics.ranpac import ranpac
from pecft_jax.continual.statistics.simplecil import simplecil
from pecft_jax.continual.wrappers.derpp import derpp
from pecft_jax.continual.wrappers.er import er
from pecft_jax.continual.wrappers.ewc import ewc
from pecft_jax.continual.wrappers.lwf import lwf
from pecft_jax.typing import ContinualMethod

# Called with a backbone and a capacity; all but `simplecil` take a transform as `peft`.
METHODS: dict[str, Callable[..., ContinualMethod]] = {
  'ease': ease,
  'finetune': finetune,
  'joint': joint,
  'l2p': l2p,
  'olora': olora,
  'ranpac': ranpac,
  'simplecil': simplecil,
}

# Called with a method.
WRAPPERS: dict[str, Callable[..., ContinualMethod]] = {
  'derpp': derpp,
  'er': er,
  'ewc': ewc,
  'lwf': lwf,
}


def summaries() -> dict[str, str]:
  """One line on each method and wrapper: the first of its docstring."""
  return {
    name: (factory.__doc__ or '').strip().partition('\n')[0]
    for name, factory in {**METHODS, **WRAPPERS}.items()
  }
