"""DeLoRA: low-rank updates of normalised components, with one trained strength
(Bini et al., 2025, arXiv:2503.18225).
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.lowrank.lora import LoraDelta, init_lora, low_rank
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_rank
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class DeloraDelta(NamedTuple):
  """y = x W + strength / r sum_i (x * norms) a_i b_i / (|a_i| |b_i|), with * entry by entry.

  Hugging Face's DELORA: `delora_A` = A^T, `delora_B` = B^T, `delora_lambda` = strength,
  `delora_w_norm` = norms.
  """

  AXES = {'a': ('in', 'rank'), 'b': ('rank', 'out'), 'norms': ('in',)}

  a: Array  # [d_in, r], uniform in +-sqrt(1 / d_in) at init.
  b: Array  # [r, d_out], zeros at init.
  strength: Array  # [1], the paper's lambda.
  norms: Kept  # [d_in], the norms of the rows of W.


@about(
  'transform',
  'low-rank',
  Paper('Decoupling angles and strength in low-rank adaptation', '2503.18225'),
  tiny=lambda: delora(rank=2, strength=0.5),
)
@recorded
def delora(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  strength: float = 15.0,
  *,
  dropout: float = 0.0,
) -> PeftTransform:
  """Adds a low-rank update whose norm a trained strength bounds.

  Each of the r components is divided by its norm, so that the update relative to the rows of W is
  at most `strength` in Frobenius norm, whatever the rate of A and B. Norms below 1e-4 count as
  1e-4. The update has its full size as soon as B is not zero, after one step: where losses jump
  there, start with a smaller strength. Trained are r (d_in + d_out) + 1 numbers at each site, kept
  d_in. Hugging Face's defaults: r = 8, strength 15.

  Args:
    pattern: regex searched in the site path.
    rank: r, from 1 to the smaller side of the weight.
    strength: lambda at init.
    dropout: share of the entries of x that A does not see in training.

  Raises:
    ValueError: for a rank below 1, a strength that is not positive, or a dropout outside [0, 1);
      at init, for a rank above the smaller side of a weight.

  >>> import jax
  >>> from pecft_jax.peft import delora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = delora(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].strength.tolist()
  [15.0]
  """
  at_least(1, rank=rank)
  above(0, strength=strength)

  def init_one(key, spec, weights):
    check_rank(spec.site.path, weights.main, rank)
    a, b = init_lora(key, weights, rank)
    norms = jnp.linalg.norm(weights.main.astype(jnp.float32), axis=1)
    return DeloraDelta(a, b, jnp.full(1, strength, jnp.float32), Kept(norms))

  def factors(delta: DeloraDelta) -> LoraDelta:
    gain = delta.strength / (rank * _norm(delta.a, 0) * _norm(delta.b, 1))
    return LoraDelta(delta.norms.value[:, None] * delta.a, gain[:, None] * delta.b)

  def run(delta, next_fn, x, w, b, drop=no_drop):
    return next_fn(x, w, b) + low_rank(factors(delta), drop(x))

  def update(delta, w):
    del w
    return jnp.matmul(*factors(delta), precision='highest')

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)


def _norm(array: Array, axis: int) -> Array:
  """At least 1e-4; bounded before the root, whose gradient at zero is infinite."""
  return jnp.sqrt(jnp.maximum(jnp.square(array).sum(axis), 1e-8))
