"""LoHa: the entrywise product of two low-rank matrices (Hyeon-Woo et al., 2021,
arXiv:2108.06098).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class LohaDelta(NamedTuple):
  """y = x W + scale x ((A1 B1) * (A2 B2)), `*` entry by entry.

  In files of Hugging Face's peft the transposes, in this order: `hada_w1_b`, `hada_w1_a`,
  `hada_w2_b`, `hada_w2_a`.
  """

  AXES = {
    'a1': ('in', 'rank'),
    'b1': ('rank', 'out'),
    'a2': ('in', 'rank'),
    'b2': ('rank', 'out'),
  }

  a1: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init.
  b1: Array  # [r, d_out], uniform in +-sqrt(1 / r) at init.
  a2: Array  # [d_in, r], zeros at init.
  b2: Array  # [r, d_out], as b1.


@about(
  'transform',
  'low-rank',
  Paper(
    'FedPara: low-rank Hadamard product for communication-efficient federated learning',
    '2108.06098',
  ),
  tiny=lambda: loha(rank=2),
)
@recorded
def loha(pattern: str = r'attn/(q|v)$', rank: int = 8, alpha: float | None = None) -> PeftTransform:
  """Adds the entrywise product of two low-rank products to matching linear sites.

  dW = scale (A1 B1) * (A2 B2) has a rank of up to r^2 with 2 r (d_in + d_out) numbers per site. It
  is applied as a product of two factors of rank r^2 where these are smaller than dW, else formed.
  Hugging Face's peft (`LOHA`) has r = 8, alpha = 8.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: the update is scaled by alpha / r; r by default.

  Raises:
    ValueError: for a rank below 1, or an alpha that is not positive; at init, for a rank above the
      smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import loha
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = loha(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a1.shape
  (96, 4)
  """
  at_least(1, rank=rank)
  above(0, alpha=alpha)
  scale = 1.0 if alpha is None else alpha / rank

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    if rank > min(d_in, d_out):
      raise ValueError(
        f'{spec.site.path}: rank {rank} is above the smaller side of its weight [{d_in}, {d_out}]'
      )
    keys = jax.random.split(key, 3)
    draw = lambda key, shape, fan: _uniform(key, shape, math.sqrt(1 / fan))
    return LohaDelta(
      draw(keys[0], (d_in, rank), d_in),
      draw(keys[1], (rank, d_out), rank),
      jnp.zeros((d_in, rank)),
      draw(keys[2], (rank, d_out), rank),
    )

  def run(delta, next_fn, x, w, b):
    (d_in, own), d_out = delta.a1.shape, delta.b1.shape[1]
    if own**2 * (d_in + d_out) < d_in * d_out:
      # Row i of the left factor is the outer product of rows i of A1 and A2; so for columns.
      left = (delta.a1[:, :, None] * delta.a2[:, None, :]).reshape(d_in, own**2)
      right = (delta.b1[:, None, :] * delta.b2[None, :, :]).reshape(own**2, d_out)
      extra = product(product(x, left), right) * jnp.asarray(scale, x.dtype)
    else:
      extra = product(x, update(delta, w))
    return next_fn(x, w, b) + extra

  def update(delta, w):
    del w
    first = jnp.matmul(delta.a1, delta.b1, precision='highest')
    return scale * first * jnp.matmul(delta.a2, delta.b2, precision='highest')

  return per_site('linear', pattern, init_one, run, update=update)


def _uniform(key, shape, bound):
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
