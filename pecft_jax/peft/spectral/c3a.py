"""C3A: updates of circulant blocks (Chen et al., 2024, arXiv:2407.19342)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform


class C3aDelta(NamedTuple):
  """y = x (W + dW) + b, each block of dW a circulant matrix.

  In files of Hugging Face's peft `c3a_kernel`, as it is.
  """

  AXES = {'kernel': ('out', 'in', None)}

  kernel: Array  # [d_out / n, d_in / n, n], uniform at init.


@about(
  'transform',
  'spectral',
  Paper('Parameter-efficient fine-tuning via circular convolution', '2407.19342'),
  tiny=lambda: c3a(block=4),
  identity=False,
)
@recorded
def c3a(pattern: str = r'attn/(q|v)$', block: int = 256, *, spread: float = 1.0) -> PeftTransform:
  """Adds a matrix of circulant blocks to matching linear sites, by Fourier transforms.

  dW[i n + p, o n + q] = kernel[o, i, (p - q) mod n] / d_in: of any rank, with d_in d_out / n
  numbers per site. Inputs are transformed in blocks of n, multiplied with the kernel frequency by
  frequency, and transformed back, in float32: beside the transforms some 4 d_in d_out / n
  operations per token, in place of 2 d_in d_out for a dense dW. Hugging Face's peft (`C3A`) has
  blocks of 256 and Glorot's uniform init; with `spread=0` a fresh delta leaves the model as it is.

  Args:
    pattern: regex searched in the site path.
    block: n, at least 1; a divisor of d_in and d_out.
    spread: entries are uniform in +-spread sqrt(6 / (d_in + d_out)) at init; 0 for zeros.

  Raises:
    ValueError: for a block below 1, or a negative spread; at init, for a block that does not divide
      both sides of a weight.

  >>> import jax
  >>> from pecft_jax.peft import c3a
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = c3a(r'attn/q$', block=32)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].kernel.shape
  (3, 3, 32)
  """
  at_least(1, block=block)
  at_least(0, spread=spread)

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    if d_in % block or d_out % block:
      raise ValueError(
        f'{spec.site.path}: expected a block that divides both sides of its weight '
        f'[{d_in}, {d_out}], got {block}'
      )
    bound = spread * math.sqrt(6 / (d_in + d_out))
    shape = (d_out // block, d_in // block, block)
    return C3aDelta(bound * jax.random.uniform(key, shape, minval=-1, maxval=1))

  def run(delta, next_fn, x, w, b):
    rows = x.astype(jnp.float32).reshape(-1, delta.kernel.shape[1], block)
    kernel = jnp.conj(jnp.fft.rfft(delta.kernel))
    waves = jnp.einsum('nif,oif->nof', jnp.fft.rfft(rows), kernel, precision='highest')
    extra = jnp.fft.irfft(waves, block) / x.shape[-1]
    return next_fn(x, w, b) + extra.reshape(*x.shape[:-1], -1).astype(x.dtype)

  def update(delta, w):
    shift = (np.arange(block)[:, None] - np.arange(block)) % block  # [p, q]
    blocks = delta.kernel[:, :, shift]  # [o, i, p, q]
    return blocks.transpose(1, 2, 0, 3).reshape(w.shape) / w.shape[0]

  return per_site('linear', pattern, init_one, run, update=update)
