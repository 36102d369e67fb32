"""SHiRA: a sparse change of high rank (Bhardwaj et al., 2024, arXiv:2406.13175)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.selective.fish import scattered
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.quantised import is_quantised
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class ShiraDelta(NamedTuple):
  """W + S, with K entries of S that are not zero.

  In Hugging Face's files `shira_weight` is `values`, and `shira_indices` [2, K] are the rows
  (d_out) and columns (d_in) of `index`.
  """

  values: Array  # [K], zeros at init.
  index: Kept  # [K] int32, flat places in W [d_in, d_out].


@about(
  'transform',
  'selective',
  Paper('Sparse high rank adapters', '2406.13175'),
  tiny=lambda: shira(rank=1),
)
@recorded
def shira(pattern: str = r'attn/(q|v)$', rank: int = 32) -> PeftTransform:
  """Trains entries of the weights of matching linear sites, chosen at random once.

  As many entries as LoRA of a rank would train: K = r (d_in + d_out) at each site, all different;
  the sum W + S may have any rank. K numbers are trained, and K indices stored. The gradient of a
  whole weight is computed for them, as in `full`.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1.

  Raises:
    ValueError: for a rank below 1; at init, for more entries than a weight has.

  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.peft import shira
  >>> model = pretrained('vit_glyphs16')
  >>> transform = shira(r'attn/q$', rank=2)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].values.shape
  (384,)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    count = rank * (d_in + d_out)
    if count > d_in * d_out:
      most = d_in * d_out // (d_in + d_out)
      raise ValueError(
        f'shira: rank {rank} needs {count} entries at {spec.site.path!r}, whose weight '
        f'[{d_in}, {d_out}] has {d_in * d_out}: expected a rank of at most {most}'
      )
    chosen = jax.random.choice(key, d_in * d_out, (count,), replace=False)
    return ShiraDelta(jnp.zeros(count), Kept(jnp.sort(chosen).astype(jnp.int32)))

  def run(delta, next_fn, x, w, b):
    if is_quantised(w) or w.dtype != jnp.float32:  # A small change would be lost to rounding.
      return next_fn(x, w, b) + product(x, _sparse(delta, w.shape))
    return next_fn(x, w + _sparse(delta, w.shape), b)

  def update(delta, w):
    return _sparse(delta, w.shape)

  return per_site('linear', pattern, init_one, run, update=update)


def _sparse(delta: ShiraDelta, shape: tuple[int, ...]) -> Array:
  return scattered(delta.values, delta.index.value, jnp.zeros(shape, delta.values.dtype))
