"""DoRA: low-rank updates of the direction of a weight, with a separate magnitude
(Liu et al., 2024, arXiv:2402.09353).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.lowrank.lora import init_lora, lora_scale, low_rank
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_below_size
from pecft_jax.peft.weights import Weights
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class DoraDelta(NamedTuple):
  """W' = m (W + scale A B) / |W + scale A B|, the norm taken of each output column."""

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out'), 'magnitude': ('out',)}

  a: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init.
  b: Array  # [r, d_out], zeros at init.
  magnitude: Array  # [d_out], m, the norms of the columns of W at init.


@about(
  'transform',
  'low-rank',
  Paper('DoRA: weight-decomposed low-rank adaptation', '2402.09353'),
  tiny=lambda: dora(rank=2),
)
@recorded
def dora(pattern: str = r'attn/(q|v)$', rank: int = 8, alpha: float | None = None) -> PeftTransform:
  """Adapts magnitude and direction of matching linear sites.

  The norm takes no part in the gradient (section 4.3 of the paper). It is that
  of the frozen weight, so in a chain `dora` goes first among the transforms of
  a site: only then is merging the chain exact.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.
    alpha: the update is scaled by alpha / r; 2 r by default.

  >>> import jax
  >>> from pecft_jax.peft import dora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = dora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].magnitude.shape
  (96,)
  """
  scale = lora_scale(rank, alpha, rank_stabilised=False)

  def moved(delta, w):
    return w + scale * jnp.matmul(delta.a, delta.b, precision='highest')

  def init_one(key, spec, weights):
    check_below_size(spec.site.path, weights.main, rank)
    a, b = init_lora(key, weights, rank)
    return DoraDelta(a, b, _column_norms(weights.main))

  def run(delta, next_fn, x, w, b):
    gain = delta.magnitude / jax.lax.stop_gradient(_column_norms(moved(delta, w)))
    y = next_fn(x, w, b)
    product = y if b is None else y - b.astype(y.dtype)  # x W: the bias has no magnitude.
    update = low_rank(delta, x) * jnp.asarray(scale, x.dtype)
    # (gain - 1) as a separate term: exactly the frozen layer at init, and no rounding to 1 in
    # bfloat16.
    return y + (gain - 1).astype(y.dtype) * product + gain.astype(y.dtype) * update

  def merge(delta, weights):
    w = moved(delta, weights.main)
    return Weights(w * (delta.magnitude / _column_norms(w)), weights.bias)

  return per_site('linear', pattern, init_one, run, merge)


def _column_norms(w: Array) -> Array:
  """[d_in, d_out] -> [d_out] in float32; positive also for a column of zeros."""
  return jnp.maximum(jnp.linalg.norm(w.astype(jnp.float32), axis=0), 1e-12)
