"""HRA: a chain of trained reflections of a layer's inputs (Yuan et al., 2024, arXiv:2405.17484)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class HraDelta(NamedTuple):
  """y = x H^T W + b, with H the product of reflections I - 2 u u^T / |u|^2.

  In files of Hugging Face's peft `hra_u`, as it is.
  """

  AXES = {'u': ('in', 'rank')}

  u: Array  # [d_in, r], a column per reflection; columns 2 i and 2 i + 1 are equal at init.


@about(
  'transform',
  'multiplicative',
  Paper(
    'Bridging the gap between low-rank and orthogonal adaptation via Householder reflection '
    'adaptation',
    '2405.17484',
  ),
  tiny=lambda: hra(rank=2),
)
@recorded
def hra(pattern: str = r'attn/(q|v)$', rank: int = 8) -> PeftTransform:
  """Reflects the inputs of matching linear sites along trained directions.

  H = (I - 2 u_1 u_1^T) ... (I - 2 u_r u_r^T) of columns of unit norm is I - U T U^T with a
  triangular T [r, r], so all reflections are one product of rank r. A pair of equal reflections is
  the identity: an even rank starts at the frozen model, an odd one does not. Columns are uniform in
  +-sqrt(2 / r), for an odd rank in +-sqrt(1 / r), at init; only their directions count. A site has
  r d_in numbers. Hugging Face's peft (`HRA`) has r = 8 and this init; its `apply_GS`, reflections
  along orthonormalised columns, is another function.

  Args:
    pattern: regex searched in the site path.
    rank: r, the number of reflections, from 1 to d_in.

  Raises:
    ValueError: for a rank below 1; at init, for a rank above d_in.

  >>> import jax
  >>> from pecft_jax.peft import hra
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = hra(r'attn/q$', rank=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].u.shape
  (96, 4)
  """
  at_least(1, rank=rank)

  def init_one(key, spec, weights):
    d_in = weights.main.shape[0]
    if rank > d_in:
      raise ValueError(f'{spec.site.path}: rank {rank} is above its {d_in} inputs')
    copies = 1 if rank % 2 else 2
    bound = math.sqrt(copies / rank)
    u = jax.random.uniform(key, (d_in, rank // copies), minval=-bound, maxval=bound)
    return HraDelta(jnp.repeat(u, copies, axis=1))

  def run(delta, next_fn, x, w, b):
    u, mixed = _factors(delta.u)
    return next_fn(x - product(product(x, u), mixed.T), w, b)

  def update(delta, w):
    u, mixed = _factors(delta.u)
    return -jnp.matmul(u, jnp.matmul(mixed.T, w, precision='highest'), precision='highest')

  return per_site('linear', pattern, init_one, run, update=update)


def _factors(u: Array) -> tuple[Array, Array]:
  """U and U T, both [d_in, r], of H = I - U T U^T."""
  u = u / jnp.linalg.norm(u, axis=0)
  inner = jnp.matmul(u.T, u, precision='highest')
  # The inverse of T: halves on the diagonal, inner products above it.
  inverse = jnp.triu(inner, 1) + jnp.eye(u.shape[1]) / 2
  t = jax.scipy.linalg.solve_triangular(inverse, jnp.eye(u.shape[1]))
  return u, jnp.matmul(u, t, precision='highest')
