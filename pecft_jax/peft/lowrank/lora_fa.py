"""LoRA-FA: LoRA whose down-projection stays as it was drawn (Zhang et al., 2023,
arXiv:2308.03303).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.lora import LoraDelta, init_lora, lora_scale, low_rank
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_below_size
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class LoraFaDelta(NamedTuple):
  """y = x W + scale x A B, with A kept.

  Hugging Face's LORA: `lora_A.weight` = A^T, `lora_B.weight` = B^T.
  """

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  b: Array  # [r, d_out], zeros at init.
  a: Kept  # [d_in, r], uniform in +-sqrt(1 / d_in), as of LoRA.


@about(
  'transform',
  'low-rank',
  Paper('LoRA-FA: memory-efficient low-rank adaptation for large language models', '2308.03303'),
  tiny=lambda: lora_fa(rank=2),
)
@recorded
def lora_fa(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  dropout: float = 0.0,
) -> PeftTransform:
  """Adds a low-rank product whose first factor is random and frozen.

  The backward pass stores x A [..., r] in the place of x [..., d_in] at each site. Trained are
  r d_out numbers, kept r d_in. It is the transform of the paper alone: Hugging Face has LoRA-FA
  as an optimizer, which besides multiplies the gradient of B by (A^T A)^-1 / scale^2.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the update is scaled by alpha / r; 2 r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a rank above
      both sides of a weight.

  >>> import jax
  >>> from pecft_jax.peft import lora_fa, split_kept
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lora_fa(r'block_0/attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> [leaf.shape for leaf in jax.tree.leaves(split_kept(delta)[0])]
  [(4, 96)]
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)

  def init_one(key, spec, weights):
    check_below_size(spec.site.path, weights.main, rank)
    a, b = init_lora(key, weights, rank)
    return LoraFaDelta(b, Kept(a))

  def run(delta, next_fn, x, w, b, drop=no_drop):
    added = low_rank(LoraDelta(delta.a.value, delta.b), drop(x))
    return next_fn(x, w, b) + added * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    return scale * jnp.matmul(delta.a.value, delta.b, precision='highest')

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
