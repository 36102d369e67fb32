"""Continual-learning methods as pure functions, and wrappers around them."""

from pecft_jax.continual.ease import ease
from pecft_jax.continual.finetune import finetune, joint
from pecft_jax.continual.l2p import l2p
from pecft_jax.continual.olora import olora
from pecft_jax.continual.ranpac import ranpac
from pecft_jax.continual.registry import METHODS, WRAPPERS, summaries
from pecft_jax.continual.simplecil import simplecil
from pecft_jax.continual.wrappers import derpp, er, ewc, lwf

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
