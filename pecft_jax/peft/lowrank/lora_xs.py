"""LoRA-XS: a trained core between frozen factors of each weight's singular value decomposition
(Bałazy et al., 2024, arXiv:2405.17604).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.lora import LoraDelta, lora_scale, low_rank
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import leading_part
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class LoraXsDelta(NamedTuple):
  """y = x W + scale x A R B, with A B the leading part of W, kept, and R trained.

  Hugging Face's peft has no such type; it is its LORA with `lora_A.weight` = A^T and
  `lora_B.weight` = (R B)^T, of rank r and the same scale.
  """

  AXES = {'core': ('rank', 'rank'), 'a': ('in', 'rank'), 'b': ('rank', 'out')}

  core: Array  # [r, r], R, zeros at init.
  a: Kept  # [d_in, r], the leading left singular vectors of W [d_in, d_out].
  b: Kept  # [r, d_out], the leading singular values times the right singular vectors.


@about(
  'transform',
  'low-rank',
  Paper('LoRA-XS: low-rank adaptation with extremely small number of parameters', '2405.17604'),
  tiny=lambda: lora_xs(rank=3),
)
@recorded
def lora_xs(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  dropout: float = 0.0,
) -> PeftTransform:
  """Trains an r x r core between frozen singular vectors of each weight.

  Trained are r^2 numbers at each site, kept r (d_in + d_out). The singular values are in the
  factor on the side of the outputs (section 3 of the paper). The paper draws R with a deviation
  of 1e-5; here it is zero at init, where its gradient is not.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: the update is scaled by alpha / r; 2 r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a rank above the
      smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import lora_xs
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lora_xs(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].core.shape
  (4, 4)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)

  def init_one(key, spec, weights):
    del key  # Deterministic: read off the weights.
    u, s, v = leading_part(spec.site.path, weights.main, rank)
    return LoraXsDelta(jnp.zeros((rank, rank)), Kept(u), Kept(s[:, None] * v))

  def run(delta, next_fn, x, w, b, drop=no_drop):
    inner = jnp.matmul(delta.core, delta.b.value, precision='highest')
    added = low_rank(LoraDelta(delta.a.value, inner), drop(x))
    return next_fn(x, w, b) + added * jnp.asarray(scale, x.dtype)

  def update(delta, w):
    del w
    inner = jnp.matmul(delta.core, delta.b.value, precision='highest')
    return scale * jnp.matmul(delta.a.value, inner, precision='highest')

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
