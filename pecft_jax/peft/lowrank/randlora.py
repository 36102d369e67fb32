"""RandLoRA: an update of full rank, the sum of random low-rank products with trained scalings
(Albert et al., 2025, arXiv:2502.00987).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.noise import no_drop
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import check_rank
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class RandloraDelta(NamedTuple):
  """y = x (W + scale dW), with dW [d_in, d_out] from n products of frozen bases of rank r.

  m and M are the smaller and the larger side of W, and n = ceil(m / r). Hugging Face's RANDLORA:
  `randlora_lambda` and `randlora_gamma` are these arrays, not transposed.
  """

  AXES = {'rows': ('rank', 'basis'), 'columns': ('basis', None)}

  rows: Array  # [r, n], the paper's Lambda, zeros at init.
  columns: Array  # [n, m], the paper's Gamma, 1 / max(n, m) at init.


@about(
  'transform',
  'low-rank',
  Paper('RandLoRA: full-rank parameter-efficient fine-tuning of large models', '2502.00987'),
  tiny=lambda: randlora(rank=5, alpha=1.0),
)
@recorded
def randlora(
  pattern: str = r'attn/(q|v)$',
  rank: int = 32,
  alpha: float | None = None,
  *,
  seed: int = 0,
  dropout: float = 0.0,
  bases: tuple[Array, Array] | None = None,
) -> PeftTransform:
  """Rescales random low-rank products that add up to an update of full rank.

  The smaller r, the more is trained: n (r + m) numbers at each site, with m the smaller side of
  the weight and n = ceil(m / r). The bases are drawn again from the seed wherever they are needed,
  and are not part of the delta; every site reads leading parts of the same ones. Keep the seed
  with a saved delta. Their entries are uniform with variance 1, as of Hugging Face's, which
  draws them with another generator; there, r = 32 and alpha = 640. dW and its gradient are formed,
  [d_in, d_out], as are the bases, M m numbers.

  Args:
    pattern: regex searched in the site path.
    rank: r of each product, from 1 to the smaller side of the weight.
    alpha: the update is scaled by alpha / r; 20 r by default.
    seed: of the random bases.
    dropout: share of the entries of x that the update does not see in training.
    bases: A [r, m] and B [M, n, r] of the largest sides in the place of those of the seed, as of an
      adapter that another library trained.

  Raises:
    ValueError: for a rank below 1, a negative seed, or a dropout outside [0, 1); at init, for a
      rank above the smaller side of a weight, or a weight larger than the bases.

  >>> import jax
  >>> from pecft_jax.peft import randlora
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = randlora(r'attn/q$', rank=16)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].rows.shape, delta['block_0/attn/q'].columns.shape
  ((16, 6), (6, 96))
  """
  at_least(1, rank=rank)
  at_least(0, seed=seed)
  above(0, alpha=alpha)
  scale = 20.0 if alpha is None else alpha / rank

  def init_one(key, spec, weights):
    del key  # Nothing trained is random.
    check_rank(spec.site.path, weights.main, rank)
    small, large = sorted(weights.main.shape)
    if bases is not None and (small > bases[0].shape[1] or large > bases[1].shape[0]):
      raise ValueError(
        f'{spec.site.path}: its weight {list(weights.main.shape)} is larger than the bases, '
        f'{list(bases[0].shape)} and {list(bases[1].shape)}'
      )
    count = math.ceil(small / rank)
    return RandloraDelta(
      jnp.zeros((rank, count)), jnp.full((count, small), 1 / max(count, small), jnp.float32)
    )

  def update(delta, w):
    m, size = sorted(w.shape)
    if bases is None:
      small, large = random_bases(seed, rank, m, size)
    else:
      small, large = bases[0][:, :m], bases[1][:size, : math.ceil(m / rank)]
    return scale * combined(delta, small, large, w.shape[0] <= w.shape[1])

  def run(delta, next_fn, x, w, b, drop=no_drop):
    return next_fn(x, w, b) + product(drop(x), update(delta, w))

  return per_site('linear', pattern, init_one, run, dropout=dropout, update=update)


def random_bases(seed: int, rank: int, small: int, large: int) -> tuple[Array, Array]:
  """A [r, m] and B [M, n, r], uniform with variance 1; smaller ones are parts of larger ones."""
  key_a, key_b = jax.random.split(jax.random.key(seed, impl='threefry2x32'))
  bound = math.sqrt(3)
  draw = lambda key: jax.random.uniform(key, (rank,), minval=-bound, maxval=bound)
  keys = lambda key, count: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
  count = math.ceil(small / rank)
  a = jax.vmap(draw)(keys(key_a, small)).T
  b = jax.vmap(lambda key: jax.vmap(draw)(keys(key, count)))(keys(key_b, large))
  return a, b


def combined(delta: RandloraDelta, small: Array, large: Array, wide: bool) -> Array:
  """dW [d_in, d_out] without its scale.

  The two sides are flattened in different orders, as Hugging Face's code does: product number
  j r + i of B meets product number i n + j of A.

  Args:
    delta: with `rows` [r, n] and `columns` [n, m].
    small: A [r, m].
    large: B [M, n, r].
    wide: whether d_in <= d_out.
  """
  scaled = delta.rows[:, :, None] * small[:, None] * delta.columns
  tall = jnp.matmul(
    large.reshape(large.shape[0], -1), scaled.reshape(-1, small.shape[1]), precision='highest'
  )
  return tall.T if wide else tall
