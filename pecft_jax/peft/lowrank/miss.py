"""MiSS: one small matrix that the inputs of a layer share, block by block
(Kang and Yin, 2024, arXiv:2409.15371; the successor of Bone).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class MissDelta(NamedTuple):
  """y = x W + (x_0 + x_1 + ...) M, with x_j the j-th r entries of x, the last padded with zeros.

  Hugging Face's MISS: `miss_block` = M, not transposed.
  """

  AXES = {'block': ('rank', 'out')}

  block: Array  # [r, d_out], M, zeros at init.


@about(
  'transform',
  'low-rank',
  Paper('MiSS: revisiting the trade-off in LoRA with an efficient shard-sharing structure',
        '2409.15371'),
  tiny=lambda: miss(rank=7),
)  # fmt: skip
@recorded
def miss(pattern: str = r'attn/(q|v)$', rank: int = 64, *, dropout: float = 0.0) -> PeftTransform:
  """Adds a matrix whose rows repeat after every r inputs.

  Row i of dW is row i mod r of M. Trained are r d_out numbers at each site, which is half of
  LoRA's where d_in = d_out; there is no scale. Hugging Face's defaults: r = 64, no dropout; its
  variants `bat` and `mini` are other functions.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to d_in.
    dropout: share of the entries of x that M does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a rank above the
      width of a layer's input.

  >>> import jax
  >>> from pecft_jax.peft import miss
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = miss(r'attn/q$', rank=16)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].block.shape
  (16, 96)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    del key  # Nothing is random.
    d_in, d_out = weights.main.shape
    if rank > d_in:
      raise ValueError(f'{spec.site.path}: rank {rank} is above the width of its input, {d_in}')
    return MissDelta(jnp.zeros((rank, d_out)))

  def run(delta, next_fn, x, w, b, drop=no_drop):
    shards = jnp.pad(drop(x), [*[(0, 0)] * (x.ndim - 1), (0, -x.shape[-1] % rank)])
    summed = shards.reshape(*x.shape[:-1], -1, rank).sum(-2)
    return next_fn(x, w, b) + product(summed, delta.block)

  def update(delta, w):
    return delta.block[jnp.arange(w.shape[0]) % rank]

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
