"""LoKr: a Kronecker product with a low-rank factor (Yeh et al., 2023, arXiv:2309.14859)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.lowrank.krona import factor_pair, kron_product
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Key, PeftTransform


class LokrFactors(NamedTuple):
  """A matrix A B of rank r."""

  a: Array  # [i, r]
  b: Array  # [r, o]


class LokrDelta(NamedTuple):
  """y = x W + scale x (C kron D), each factor a matrix or a product of rank r.

  In files of Hugging Face's peft the transposes: `lokr_w1` of `c` or `lokr_w1_b`, `lokr_w1_a` of
  its `a`, `b`; `lokr_w2` of `d` or `lokr_w2_b`, `lokr_w2_a` of its `a`, `b`.
  """

  c: Array | LokrFactors  # [i1, o1], zeros at init; of a product, `b` is.
  d: Array | LokrFactors  # [i2, o2], random at init; i1 i2 = d_in, o1 o2 = d_out.


@about(
  'transform',
  'low-rank',
  Paper(
    'Navigating text-to-image customization: from LyCORIS fine-tuning to model evaluation',
    '2309.14859',
  ),
  Paper('KronA: parameter efficient tuning with Kronecker adapter', '2212.10650'),
  tiny=lambda: lokr(rank=1, factor=2),
)
@recorded
def lokr(
  pattern: str = r'attn/(q|v)$',
  rank: int = 8,
  alpha: float | None = None,
  *,
  factor: int | None = None,
  decompose_both: bool = False,
) -> PeftTransform:
  """Adds a Kronecker product, one factor of it of low rank, to matching linear sites.

  dW = scale C kron D. D is a product of rank r where r < max(i2, o2) / 2, else a whole matrix; C
  is a whole matrix, or with `decompose_both` by the same rule. A site has i1 o1 + r (i2 + o2)
  numbers if D alone is a product; dW is never formed. Factors that are not zero at init are uniform
  in +-sqrt(1 / fan), where the fan of C, D and of the first factor of a product is its number of
  rows, and of the second r. KronA (arXiv:2212.10650) has whole factors. Hugging Face's peft
  (`LOKR`) has r = 8, alpha = 8, `decompose_factor` -1 (here None), and this rule for sizes.

  Args:
    pattern: regex searched in the site path.
    rank: r, at least 1; from max(i2, o2) / 2 on it only divides alpha.
    alpha: the update is scaled by alpha / r; r by default.
    factor: i1 and o1 where it divides d_in, d_out; else the largest divisor that is neither above
      it nor above the square root; None for the latter bound alone.
    decompose_both: whether C may be a product, too.

  Raises:
    ValueError: for a rank or factor below 1, or an alpha that is not positive.

  >>> import jax
  >>> from pecft_jax.peft import lokr
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = lokr(r'attn/q$', rank=2, factor=4)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].c.shape, delta['block_0/attn/q'].d.a.shape
  ((4, 4), (24, 2))
  """
  at_least(1, rank=rank, factor=factor)
  above(0, alpha=alpha)
  scale = 1.0 if alpha is None else alpha / rank

  def init_one(key, spec, weights):
    del spec
    (i1, i2), (o1, o2) = (factor_pair(size, factor) for size in weights.main.shape)
    key_c, key_d = jax.random.split(key)
    split_c = decompose_both and rank < max(i1, o1) / 2
    c = _draw(key_c, i1, o1, rank if split_c else None)
    c = c._replace(b=jnp.zeros_like(c.b)) if isinstance(c, LokrFactors) else jnp.zeros_like(c)
    return LokrDelta(c, _draw(key_d, i2, o2, rank if rank < max(i2, o2) / 2 else None))

  def run(delta, next_fn, x, w, b):
    c, d = _dense(delta.c), delta.d
    if isinstance(d, LokrFactors):
      inner = kron_product(x, c, d.a)  # [..., o1 r]
      rows = inner.reshape(*x.shape[:-1], c.shape[1], d.a.shape[1])
      extra = product(rows, d.b).reshape(*x.shape[:-1], -1)
    else:
      extra = kron_product(x, c, d)
    return next_fn(x, w, b) + scale * extra

  def update(delta, w):
    del w
    return scale * jnp.kron(_dense(delta.c), _dense(delta.d))

  return per_site('linear', pattern, init_one, run, update=update)


def _draw(key: Key, rows: int, columns: int, rank: int | None) -> Array | LokrFactors:
  def uniform(key: Key, shape: tuple[int, int]) -> Array:
    bound = math.sqrt(1 / shape[0])
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

  if rank is None:
    return uniform(key, (rows, columns))
  first, second = jax.random.split(key)
  return LokrFactors(uniform(first, (rows, rank)), uniform(second, (rank, columns)))


def _dense(factor: Array | LokrFactors) -> Array:
  if isinstance(factor, LokrFactors):
    return jnp.matmul(factor.a, factor.b, precision='highest')
  return factor
