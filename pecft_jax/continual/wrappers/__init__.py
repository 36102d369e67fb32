"""Methods that take a method and return one."""

from pecft_jax.continual.wrappers.derpp import derpp
from pecft_jax.continual.wrappers.er import er
from pecft_jax.continual.wrappers.ewc import ewc
from pecft_jax.continual.wrappers.lwf import lwf
from pecft_jax.continual.wrappers.wrap import wrap

__all__ = [
  'derpp',
  'er',
  'ewc',
  'lwf',
  'wrap',
]
