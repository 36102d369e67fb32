"""MiLoRA: the minor singular values and vectors are trained (Wang et al., 2024,
arXiv:2406.09044).
"""

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.pissa import balanced, part_scale, trained_part
from pecft_jax.peft.svd import trailing_part
from pecft_jax.settings import recorded
from pecft_jax.typing import PeftTransform


@about(
  'transform',
  'low-rank',
  Paper('MiLoRA: harnessing minor singular components for parameter-efficient LLM finetuning',
        '2406.09044'),
  tiny=lambda: milora(rank=2),
)  # fmt: skip
@recorded
def milora(
  pattern: str = r'attn/(q|v)$', rank: int = 8, alpha: float | None = None, *, dropout: float = 0.0
) -> PeftTransform:
  """Trains the trailing part of each weight's singular value decomposition.

  As `pissa`, from the other end: A_0 = U sqrt(S / scale) and B_0 = sqrt(S / scale) V^T of the r
  smallest singular values, and what stays frozen is the principal part of W. The function is
  the same at init. Each site stores 2 r (d_in + d_out) numbers, half of them trained. Hugging
  Face's peft has no such init; trained factors are its LORA of rank 2 r, as those of `pissa` are.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    alpha: both products are scaled by alpha / r; r by default.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a
      rank above the smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import milora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = milora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 4)
  """
  scale = part_scale(rank, alpha)
  part = lambda key, path, w: balanced(*trailing_part(path, w, rank), scale)
  return trained_part(pattern, part, scale, dropout)
