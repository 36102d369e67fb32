"""HiRA: an update of high rank, the weight times a low-rank product entry by entry
(Huang et al., 2025, ICLR, openreview.net/forum?id=TwJrTz9cRS).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.arguments import at_least
from pecft_jax.peft.lowrank.lora import init_lora
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_rank
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class HiraDelta(NamedTuple):
  """y = x (W * (1 + A B)), with * entry by entry.

  Hugging Face's HIRA: `hira_A` = A^T, `hira_B` = B^T.
  """

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out')}

  a: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init (Kaiming, slope sqrt(5)).
  b: Array  # [r, d_out], zeros at init.


@about('transform', 'low-rank', tiny=lambda: hira(rank=2))
@recorded
def hira(pattern: str = r'attn/(q|v)$', rank: int = 32, *, dropout: float = 0.0) -> PeftTransform:
  """Adds to each weight its entrywise product with a low-rank matrix.

  W * (A B) has a rank of up to r times that of W. Trained are r (d_in + d_out) numbers at each
  site, as in LoRA; there is no scale. An update forms A B and its gradient, [d_in, d_out]. The
  weight is the frozen one, so in a chain `hira` goes first among the transforms of a site: only
  then is merging the chain exact. Hugging Face's defaults: r = 32, no dropout.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    dropout: share of the entries of x that W * (A B) does not see in training.

  Raises:
    ValueError: for a rank below 1, or a dropout outside [0, 1); at init, for a rank above the
      smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import hira
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = hira(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape
  (96, 4)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    check_rank(spec.site.path, weights.main, rank)
    return HiraDelta(*init_lora(key, weights, rank))

  def update(delta, w):
    return w * jnp.matmul(delta.a, delta.b, precision='highest')

  def run(delta, next_fn, x, w, b, drop=no_drop):
    # A product of its own: in bfloat16, small changes would be lost in a sum with W.
    return next_fn(x, w, b) + product(drop(x), update(delta, w))

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)
