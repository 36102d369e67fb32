"""SVFT: singular values are trained, and entries beside the diagonal
(Lingam et al., 2024, arXiv:2405.19597).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.peft.svd import decomposed
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Kept, PeftTransform


class SvftDelta(NamedTuple):
  """y = x (W + U M V^T), with U and V of W = U S V^T kept and M a trained band matrix.

  q is the smaller side of W. Hugging Face's peft has no such type.
  """

  AXES = {'u': ('in', None), 'v': (None, 'out')}

  values: Array  # [K], the band of M: its diagonal, then those above, then below; zeros at init.
  u: Kept  # [d_in, q]
  v: Kept  # [q, d_out], V^T.


@about(
  'transform',
  'low-rank',
  Paper('SVFT: parameter-efficient fine-tuning with singular vectors', '2405.19597'),
  tiny={'': lambda: svft(), 'band': lambda: svft(band=2)},
)
@recorded
def svft(pattern: str = r'attn/(q|v)$', band: int = 0) -> PeftTransform:
  """Trains a sparse matrix between the singular vectors of each weight.

  With a band of 0 the diagonal alone is trained, the paper's SVFT^P; with more, its banded
  SVFT^B. Trained are q (2 band + 1) - band (band + 1) numbers at each site, with q the smaller
  side of the weight; kept are q (d_in + d_out), twice the weight where it is square. dW and its
  gradient are formed, [d_in, d_out].

  Args:
    pattern: regex searched in the site path.
    band: diagonals of M above its main one, and as many below; from 0 to q - 1.

  Raises:
    ValueError: for a negative band; at init, for one that is not below q.

  >>> import jax
  >>> from pecft_jax.peft import svft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = svft(r'attn/q$', band=1)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].values.shape
  (286,)
  """
  at_least(0, band=band)

  def init_one(key, spec, weights):
    del key  # Deterministic: read off the weights.
    small = min(weights.main.shape)
    if band >= small:
      raise ValueError(
        f'{spec.site.path}: expected a band below {small}, the smaller side of its weight, '
        f'got {band}'
      )
    u, _, v = decomposed(spec.site.path, weights.main)
    return SvftDelta(jnp.zeros(len(_places(small, band)[0])), Kept(u), Kept(v))

  def update(delta, w):
    del w
    u, v = delta.u.value, delta.v.value
    if not band:
      return jnp.matmul(u * delta.values, v, precision='highest')
    small = u.shape[1]
    middle = jnp.zeros((small, small)).at[_places(small, band)].set(delta.values)
    return jnp.matmul(jnp.matmul(u, middle, precision='highest'), v, precision='highest')

  def run(delta, next_fn, x, w, b):
    return next_fn(x, w, b) + product(x, update(delta, w))

  return per_site('linear', pattern, init_one, run, update=update)


def _places(size: int, band: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of the band of a matrix [q, q], the main diagonal first."""
  rows, columns = [], []
  for offset in (0, *range(1, band + 1), *range(-1, -band - 1, -1)):
    start = np.arange(size - abs(offset))
    rows.append(start + max(-offset, 0))
    columns.append(start + max(offset, 0))
  return np.concatenate(rows), np.concatenate(columns)
