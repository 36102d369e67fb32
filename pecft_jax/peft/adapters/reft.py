"""Representation fine-tuning: interventions on hidden states within a low-rank subspace
(Wu et al., 2024, arXiv:2404.03592).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform, SiteSpec

_BLOCKS = r'(^|/)block_\d+$'
_PAPER = Paper('ReFT: representation finetuning for language models', '2404.03592')


class LoreftDelta(NamedTuple):
  """h + (h W + b - h R) R^T, with R [D, r] the orthonormalised columns of `rotation`."""

  AXES = {'rotation': ('width', 'rank'), 'source': ('width', 'rank'), 'bias': ('rank',)}

  rotation: Array  # [D, r], orthonormal columns at init.
  source: Array  # [D, r], W, equal to `rotation` at init.
  bias: Array  # [r], b, zeros at init.


class DireftDelta(NamedTuple):
  """h + (h W + b) U, with no constraint."""

  AXES = {'source': ('width', 'rank'), 'bias': ('rank',), 'up': ('rank', 'width')}

  source: Array  # [D, r], W, uniform in +-sqrt(1 / D) at init.
  bias: Array  # [r], b, zeros at init.
  up: Array  # [r, D], U, zeros at init.


@about('transform', 'adapters', _PAPER, tiny=lambda: loreft(rank=2))
@recorded
def loreft(rank: int = 4, pattern: str = _BLOCKS) -> PeftTransform:
  """Replaces a subspace of the hidden states after every block (LoReFT).

  Trained are 2 r D + r numbers per block. The paper intervenes at some first and last tokens of a
  prompt, and its code draws W at random; here all tokens are changed, and W starts as R, so that
  the function is the same at init. Keeping R orthonormal costs a QR decomposition of [D, r] per
  block and pass. Hugging Face's peft has no such type.

  Args:
    rank: r, from 1 to the width.
    pattern: regex searched in the path of `tokens` sites.

  Raises:
    ValueError: for a rank below 1; at init, for one above the width.

  >>> import jax
  >>> from pecft_jax.peft import loreft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = loreft(rank=2).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0'].rotation.shape
  (96, 2)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    del weights  # Blocks have none of their own.
    start = orthonormal(jax.random.normal(key, (_width(spec, rank), rank)))
    return LoreftDelta(start, jnp.copy(start), jnp.zeros(rank))

  def run(delta, next_fn, x, mask):
    y = next_fn(x, mask)
    basis = orthonormal(delta.rotation)
    # One product: h (W - R), in the difference of which nothing is rounded at init.
    change = product(y, delta.source - basis) + delta.bias.astype(y.dtype)
    return y + product(change, basis.T)

  return per_site('tokens', pattern, init_one, run)


@about('transform', 'adapters', _PAPER, tiny=lambda: direft(rank=2))
@recorded
def direft(rank: int = 4, pattern: str = _BLOCKS) -> PeftTransform:
  """Adds a low-rank map of the hidden states after every block (DiReFT).

  LoReFT without its constraint and without the difference. Trained are 2 r D + r numbers per
  block. All tokens are changed, and U starts as zero; see `loreft`.

  Args:
    rank: r, from 1 to the width.
    pattern: regex searched in the path of `tokens` sites.

  Raises:
    ValueError: for a rank below 1; at init, for one above the width.

  >>> import jax
  >>> from pecft_jax.peft import direft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> delta = direft(rank=2).init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0'].up.shape
  (2, 96)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    del weights
    width = _width(spec, rank)
    bound = math.sqrt(1 / width)
    source = jax.random.uniform(key, (width, rank), minval=-bound, maxval=bound)
    return DireftDelta(source, jnp.zeros(rank), jnp.zeros((rank, width)))

  def run(delta, next_fn, x, mask):
    y = next_fn(x, mask)
    return y + product(product(y, delta.source) + delta.bias.astype(y.dtype), delta.up)

  return per_site('tokens', pattern, init_one, run)


def orthonormal(columns: Array) -> Array:
  """The columns [D, r] after Gram and Schmidt, in float32: each keeps the sign it came with."""
  q, r = jnp.linalg.qr(columns.astype(jnp.float32))
  return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)


def _width(spec: SiteSpec, rank: int) -> int:
  width = spec.out.shape[-1]
  if rank > width:
    raise ValueError(f'{spec.site.path}: rank {rank} is above the width of its tokens, {width}')
  return width
