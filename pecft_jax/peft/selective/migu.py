"""MIGU: updates where outputs are large (Du et al., 2024, arXiv:2406.17245)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.peft.largest import check_share
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class MiguDelta(NamedTuple):
  """y = x (W + C) + b"""

  AXES = {'change': ('in', 'out')}

  change: Array  # C [d_in, d_out], zeros at init.


@about(
  'transform',
  'selective',
  Paper('Unlocking continual learning abilities in language models', '2406.17245'),
  tiny=lambda: migu('attn/q|fc1', share=0.5),
)
@recorded
def migu(pattern: str = '', share: float = 0.3) -> PeftTransform:
  """Trains the weights of linear layers, in each update for the outputs that are largest.

  Made for continual learning: tasks differ in which outputs of a layer are large, so their updates
  meet in fewer weights. At each site m_j = sum over the batch and its tokens of |y_j|; the
  gradient of column j of C is set to zero where m_j is below the quantile 1 - share of m. The
  paper normalises m to a sum of one, which changes no order. Needs no past data and no task.

  C is as large as W: d_in d_out numbers are trained at each site. Biases and norms are not; for
  them use `chain(columns=migu(), biases=bitfit())`. A site takes one product more, x C, in the
  forward pass. Gradients are masked in each pass, also where a wrapper squares them; with
  micro-batches, each has a mask of its own.

  The authors' code leaves the first task without masks, which a transform, which knows no task,
  cannot. It also masks the factors of LoRA; here full weights alone.

  Args:
    pattern: regex searched in the site path; all linear sites by default.
    share: of the outputs of a layer whose weights have a gradient, in (0, 1]; the authors have 0.3
      for T5-large.

  Raises:
    ValueError: for a share outside (0, 1]; at init, if the pattern matches no site.

  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = migu('fc1').init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/mlp/fc1'].change.shape
  (96, 384)
  """
  check_share(share)

  def init_one(key, spec, weights):
    del key, spec
    return MiguDelta(jnp.zeros(weights.main.shape))

  def run(delta, next_fn, x, w, b):
    still = jax.lax.stop_gradient
    y = next_fn(x, w, b) + product(x, still(delta.change))
    # Once more for the gradient of C; its value is the same product, so it is computed once.
    own = product(still(x), delta.change)
    return y + (own - still(own)) * large_outputs(still(y), share).astype(y.dtype)

  def update(delta, w):
    del w
    return delta.change

  return per_site('linear', pattern, init_one, run, update=update)


def large_outputs(y: Array, share: float) -> Array:
  """Which outputs of a layer have large magnitudes: [..., d_out] -> [d_out] bool."""
  magnitudes = jnp.abs(y.astype(jnp.float32)).sum(tuple(range(y.ndim - 1)))
  return magnitudes >= jnp.quantile(magnitudes, 1 - share)
