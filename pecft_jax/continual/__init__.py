"""Continual-learning methods as pure functions, and wrappers around them."""

from pecft_jax.continual.adapters.ease import ease
from pecft_jax.continual.bounds.finetune import finetune, joint
from pecft_jax.continual.lowrank.olora import olora
from pecft_jax.continual.prompts.l2p import l2p
from pecft_jax.continual.registry import METHODS, WRAPPERS, summaries
from pecft_jax.continual.statistics.ranpac import ranpac
from pecft_jax.continual.statistics.simplecil import simplecil
from pecft_jax.continual.wrappers.derpp import derpp
from pecft_jax.continual.wrappers.er import er
from pecft_jax.continual.wrappers.ewc import ewc
from pecft_jax.continual.wrappers.lwf import lwf

__all__ = [
  'METHODS',
  'WRAPPERS',
  'derpp',
  'ease',
  'er',
  'ewc',
  'finetune',
  'joint',
  'l2p',
  'lwf',
  'olora',
  'ranpac',
  'simplecil',
  'summaries',
]
