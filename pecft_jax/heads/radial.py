"""KAC: Kolmogorov-Arnold classifier (Hu et al., 2025, arXiv:2503.21076)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Head, Key

_EPSILON = 1e-5  # Of the layer norm, as in PyTorch.


class KacHead(NamedTuple):
  """A layer norm, and the weight of each basis function of each feature for each class."""

  AXES = {'kernel': (None, None, 'class')}

  norm_scale: Array  # [D], ones at init.
  norm_bias: Array  # [D], zeros at init.
  kernel: Array  # [D, G, C], zeros at init.


@about(
  'head',
  'radial',
  Paper('KAC: Kolmogorov-Arnold classifier for continual learning', '2503.21076'),
  tiny=lambda: kac(centers=4),
)
@recorded
def kac(*, centers: int = 16, reach: float = 2.0) -> Head:
  """Classifies by learned functions of single features, sums of Gaussian bumps.

  The logit of class c is sum_d sum_g W[d, g, c] exp(-((n_d - m_g) / w)^2), with n the features
  after a layer norm, m_g evenly spaced in [-reach, reach] and w their distance. Bumps are local:
  an update changes the functions only near the values that the task's features have. The layer norm
  is shared by all classes; the authors' code has further parameters that it does not use.

  Args:
    centers: G, bumps per feature, at least 2; G times the parameters of a linear head.
    reach: of the centers.

  Raises:
    ValueError: for fewer than two centers, or a reach that is not positive.

  >>> head = kac()
  >>> head.init(jax.random.key(0), 3, 2).kernel.shape
  (3, 16, 2)
  """
  at_least(2, centers=centers)
  above(0, reach=reach)

  def init(key: Key, width: int, classes: int) -> KacHead:
    del key
    return KacHead(jnp.ones(width), jnp.zeros(width), jnp.zeros((width, centers, classes)))

  def logits(state: KacHead, features: Array) -> Array:
    away = features - features.mean(-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(away).mean(-1, keepdims=True) + _EPSILON)
    normed = away / deviation * state.norm_scale + state.norm_bias
    grid = jnp.linspace(-reach, reach, centers)
    bumps = jnp.exp(-jnp.square((normed[..., None] - grid) * (centers - 1) / (2 * reach)))
    return jnp.einsum('bdg,dgc->bc', bumps, state.kernel)

  def awake(key: Key, state: KacHead) -> KacHead:
    width, count, _ = state.kernel.shape
    noise = jax.random.normal(key, state.kernel.shape) / jnp.sqrt(width * count)
    untrained = (state.kernel == 0).all((0, 1))
    return state._replace(kernel=jnp.where(untrained, noise, state.kernel))

  return Head(init, logits, awake=awake)
