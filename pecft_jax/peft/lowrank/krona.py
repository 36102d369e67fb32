"""KronA: the Kronecker product of two matrices (Edalati et al., 2022, arXiv:2212.10650)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class KronaDelta(NamedTuple):
  """y = x W + scale x (A kron B), with entries A[i, o] B of each block of dW."""

  a: Array  # [i1, o1], uniform in +-sqrt(1 / i1) at init.
  b: Array  # [i2, o2], zeros at init; i1 i2 = d_in, o1 o2 = d_out.


@about(
  'transform',
  'low-rank',
  Paper('KronA: parameter efficient tuning with Kronecker adapter', '2212.10650'),
  tiny=lambda: krona(),
)
@recorded
def krona(
  pattern: str = r'attn/(q|v)$', factor: int | None = None, *, scale: float = 1.0
) -> PeftTransform:
  """Adds the Kronecker product of two trained matrices to matching linear sites.

  dW has rank(A) rank(B), up to full rank, with i1 o1 + i2 o2 numbers per site; dW is never formed.
  Hugging Face's peft has no KronA; it is `LOKR` with full factors, `lokr_w1` = A^T and
  `lokr_w2` = B^T, where the other factor starts at zero.

  Args:
    pattern: regex searched in the site path.
    factor: i1 and o1, a divisor of d_in and of d_out; by default the largest divisor of each that
      is at most its square root, which makes the delta about as small as it can be.
    scale: of the update, the paper's s.

  Raises:
    ValueError: for a factor below 1, or a scale that is not positive; at init, for a factor that
      does not divide both sides of a weight.

  >>> import jax
  >>> from pecft_jax.peft import krona
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = krona(r'attn/q$', factor=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].a.shape, delta['block_0/attn/q'].b.shape
  ((4, 4), (24, 24))
  """
  at_least(1, factor=factor)
  above(0, scale=scale)

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    if factor is not None and (d_in % factor or d_out % factor):
      raise ValueError(
        f'{spec.site.path}: expected a factor that divides both sides of its weight '
        f'[{d_in}, {d_out}], got {factor}'
      )
    (i1, i2), (o1, o2) = factor_pair(d_in, factor), factor_pair(d_out, factor)
    bound = math.sqrt(1 / i1)
    a = jax.random.uniform(key, (i1, o1), minval=-bound, maxval=bound)
    return KronaDelta(a, jnp.zeros((i2, o2)))

  def run(delta, next_fn, x, w, b):
    return next_fn(x, w, b) + scale * kron_product(x, delta.a, delta.b)

  def update(delta, w):
    del w
    return scale * jnp.kron(delta.a, delta.b)

  return per_site('linear', pattern, init_one, run, update=update)


def factor_pair(size: int, factor: int | None = None) -> tuple[int, int]:
  """Two integers whose product is `size`.

  The first is `factor` where that divides `size`, else the largest divisor that is neither above
  `factor` nor above the square root of `size`.

  >>> factor_pair(24), factor_pair(24, 8), factor_pair(25, 4)
  ((4, 6), (8, 3), (1, 25))
  """
  if factor is not None and size % factor == 0:
    return factor, size // factor
  bound = min(math.isqrt(size), factor or size)
  first = next(i for i in range(bound, 0, -1) if size % i == 0)
  return first, size // first


def kron_product(x: Array, a: Array, b: Array) -> Array:
  """x (A kron B) [..., o1 o2], without the Kronecker product itself.

  Args:
    x: [..., i1 i2]
    a: [i1, o1]
    b: [i2, o2]
  """
  (i1, o1), (i2, o2) = a.shape, b.shape
  inner = x.reshape(-1, i2) @ b.astype(x.dtype)
  out = jnp.einsum('nio,ij->njo', inner.reshape(-1, i1, o2), a.astype(x.dtype))
  return out.reshape(*x.shape[:-1], o1 * o2)
