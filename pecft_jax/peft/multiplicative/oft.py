"""OFT: the inputs of a layer are rotated block by block (Qiu et al., 2023, arXiv:2306.07280).

The form that rotates inputs and the truncated series are of Qiu et al., 2025, arXiv:2506.19847.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class OftDelta(NamedTuple):
  """y = x R W + b, R block-diagonal with a rotation for each block of inputs.

  In files of Hugging Face's peft `oft_R.weight`, as it is.
  """

  AXES = {'q': ('in', None)}

  q: Array  # [d_in / n, n (n - 1) / 2], the upper triangles of skew matrices by rows; 0 at init.


@about(
  'transform',
  'multiplicative',
  Paper('Controlling text-to-image diffusion by orthogonal finetuning', '2306.07280'),
  Paper('Orthogonal finetuning made scalable', '2506.19847'),
  tiny=lambda: oft(block=4),
)
@recorded
def oft(
  pattern: str = r'attn/(q|v)$', block: int = 32, *, terms: int | None = 5, shared: bool = False
) -> PeftTransform:
  """Rotates the inputs of matching linear sites in blocks.

  Each block has a skew matrix Q. Its rotation is the series
  R = I + 2 Q + 2 Q^2 + ... + 2 Q^(t-2) + Q^(t-1), which is nearly orthogonal while Q is small, or
  exactly (I - Q) (I + Q)^-1; Q has opposite signs in the two. A site has d_in (n - 1) / 2 numbers,
  with `shared` n (n - 1) / 2. Hugging Face's peft (`OFT`) has blocks of 32, 5 terms
  (`use_cayley_neumann`), none shared; there a block that does not divide d_in is replaced by
  another size.

  Args:
    pattern: regex searched in the site path.
    block: n, the size of a block, at least 2; a divisor of d_in.
    terms: t, the terms of the series, at least 4; None for the exact form.
    shared: whether all blocks of a site have one rotation.

  Raises:
    ValueError: for a block below 2, or fewer than four terms; at init, for a block that does not
      divide d_in.

  >>> import jax
  >>> from pecft_jax.peft import oft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = oft(r'attn/q$', block=8)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].q.shape
  (12, 28)
  """
  at_least(2, block=block)
  at_least(4, terms=terms)

  def init_one(key, spec, weights):
    del key  # Deterministic.
    blocks, rest = divmod(weights.main.shape[0], block)
    if rest:
      raise ValueError(
        f'{spec.site.path}: expected a block that divides its {weights.main.shape[0]} inputs, got '
        f'{block}'
      )
    return OftDelta(jnp.zeros((1 if shared else blocks, block * (block - 1) // 2)))

  def turns(delta):
    q = _skew(delta.q, block)
    return cayley(q) if terms is None else _series(q, terms)

  def run(delta, next_fn, x, w, b):
    return next_fn(turned(x, turns(delta)), w, b)

  def update(delta, w):
    rows = w.reshape(-1, block, w.shape[1])
    each = _for_each(turns(delta), len(rows))
    return jnp.matmul(each, rows, precision='highest').reshape(w.shape)

  return per_site('linear', pattern, init_one, run, update=update)


def turned(x: Array, turns: Array, precision: str | None = None) -> Array:
  """x R, each block of entries times its own rotation.

  Args:
    x: [..., d]
    turns: [d / n, n, n], R - I, so that nothing of a small rotation is lost in a narrow dtype; or
      [1, n, n] for all blocks alike.
    precision: of the product, as of `jnp.matmul`.
  """
  rows = x.reshape(-1, x.shape[-1] // turns.shape[-1], turns.shape[-1])
  each = _for_each(turns, rows.shape[1]).astype(x.dtype)
  moved = jnp.einsum('ngi,gij->ngj', rows, each, precision=precision)
  return x + moved.reshape(x.shape)


def cayley(q: Array) -> Array:
  """R - I for R = (I - Q) (I + Q)^-1, of skew matrices Q [..., n, n]."""
  return jnp.linalg.solve(jnp.eye(q.shape[-1]) + q, -2 * q)


def _series(q: Array, terms: int) -> Array:
  """R - I for the first terms of R = I + 2 Q + 2 Q^2 + ..., the last with half its weight."""
  total = q
  for _ in range(terms - 2):
    total = 2 * q + jnp.matmul(q, total, precision='highest')
  return total


def _skew(upper: Array, size: int) -> Array:
  rows, columns = np.triu_indices(size, 1)
  half = jnp.zeros((len(upper), size, size), upper.dtype).at[:, rows, columns].set(upper)
  return half - half.swapaxes(1, 2)


def _for_each(turns: Array, blocks: int) -> Array:
  return jnp.broadcast_to(turns, (blocks, *turns.shape[1:]))
