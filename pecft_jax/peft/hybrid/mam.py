"""Mix-and-match adapters: short prefixes and wide parallel adapters
(He et al., 2022, arXiv:2110.04366).
"""

from pecft_jax.about import Paper, about
from pecft_jax.peft.adapters.bottleneck import parallel_adapter
from pecft_jax.peft.compose import chain
from pecft_jax.peft.tokens.prefix import prefix
from pecft_jax.settings import recorded
from pecft_jax.typing import PeftTransform


@about(
  'transform',
  'hybrid',
  Paper('Towards a unified view of parameter-efficient transfer learning', '2110.04366'),
  identity=False,
  tiny=lambda: mam(length=2, width=3),
)
@recorded
def mam(
  length: int = 30, width: int = 512, scale: float = 4.0, *, dropout: float = 0.0
) -> PeftTransform:
  """Short prefixes in every attention, and scaled adapters parallel to every MLP.

  The delta is that of `chain(prefix=prefix(...), adapters=parallel_adapter(...))`. Trained are
  2 P Hkv K + 2 D r + r + D numbers per block. The defaults are the paper's for summarisation and
  translation; for classification its code has length 16, width 16 and scale 2. That code makes
  prefixes by a network, which this leaves out: `chain(prefix=prefix_mlp(...), ...)` has it.

  Args:
    length: P, of the prefixes, at least 1.
    width: r, of the adapters, at least 1.
    scale: factor of the adapters' outputs.
    dropout: share of the entries after an adapter's activation that are zero in training.

  Raises:
    ValueError: for a length or a width below 1, a scale that is not positive, or a dropout outside
      [0, 1).

  >>> import jax
  >>> from pecft_jax.peft import mam
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = mam(length=2, width=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> sorted(delta), delta['prefix']['block_0/attn'].k.shape
  (['adapters', 'prefix'], (2, 3, 32))
  """
  return chain(
    prefix=prefix(length=length), adapters=parallel_adapter(width, scale, dropout=dropout)
  )
