"""OLoRA: LoRA that starts from the QR decomposition of each weight (Büyükakyüz, 2024,
arXiv:2406.01775).
"""

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.pissa import part_scale, trained_part
from pecft_jax.peft.svd import check_rank
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform


@about(
  'transform',
  'low-rank',
  Paper('OLoRA: orthonormal low-rank adaptation of large language models', '2406.01775'),
  tiny=lambda: orthonormal_lora(rank=2),
)
@recorded
def orthonormal_lora(
  pattern: str = r'attn/(q|v)$', rank: int = 8, alpha: float | None = None, *, dropout: float = 0.0
) -> PeftTransform:
  """Trains a part of each weight's QR decomposition (OLoRA).

  W^T = Q R; B_0 [r, d_out] are the first r columns of Q, orthonormal, and A_0 [d_in, r] the first
  r rows of R. W becomes (W - scale A_0 B_0) + scale A B: the function is the same at init. Each
  site stores 2 r (d_in + d_out) numbers, half of them trained. It is Hugging Face's LORA with
  `init_lora_weights='olora'`, whose factors are not divided by the scale either. (`olora` is a
  method of this library, O-LoRA, with a LoRA per task.)

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: both products are scaled by alpha / r; r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a
      rank above the smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import orthonormal_lora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = orthonormal_lora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].b.shape
  (4, 96)
  """
  scale = part_scale(rank, alpha)

  def part(key: Key, path: str, w: Array) -> tuple[Array, Array]:
    del key  # Deterministic: read off the weights.
    check_rank(path, w, rank)
    q, r = jnp.linalg.qr(w.astype(jnp.float32).T)
    return r[:rank].T, q[:, :rank].T

  return trained_part(pattern, part, scale, dropout)
