"""The linear head."""

import jax
import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Head, Key, LinearHead


@about('head', 'linear', tiny=lambda: linear())
@recorded
def linear() -> Head:
  """Classifies by dot products: h W + b, all zeros at the start, so that it favours no class.

  It is the default of all methods: the only one that other libraries read, and the one that most
  published code trains.

  >>> head = linear()
  >>> state = head.init(jax.random.key(0), 3, 2)
  >>> head.logits(state, jnp.ones((1, 3))).tolist()
  [[0.0, 0.0]]
  """

  def init(key: Key, width: int, classes: int) -> LinearHead:
    del key
    return LinearHead(jnp.zeros((width, classes)), jnp.zeros(classes))

  def logits(state: LinearHead, features: Array) -> Array:
    return features @ state.kernel + state.bias

  def awake(key: Key, state: LinearHead) -> LinearHead:
    noise = jax.random.normal(key, state.kernel.shape) / jnp.sqrt(state.kernel.shape[0])
    untrained = (state.kernel == 0).all(0)
    return state._replace(kernel=jnp.where(untrained, noise, state.kernel))

  return Head(init, logits, awake=awake, linear=lambda state: state)
