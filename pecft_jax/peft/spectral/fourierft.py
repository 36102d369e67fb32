"""FourierFT: updates with a sparse spectrum (Gao et al., 2024, arXiv:2405.03003)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.peft.sites import per_site
from pecft_jax.product import product
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, PeftTransform

_LARGEST = (1 << 32) // 20  # Entries of a weight; torch permutes more of them another way.


class FourierftDelta(NamedTuple):
  """y = x (W + dW) + b, with dW the inverse Fourier transform of few coefficients.

  In files of Hugging Face's peft `fourierft_spectrum`, as it is.
  """

  spectrum: Array  # [n], normal at init.


@about(
  'transform',
  'spectral',
  Paper('Parameter-efficient fine-tuning with discrete Fourier transform', '2405.03003'),
  tiny=lambda: fourierft(count=12, scale=30.0),
  identity=False,
)
@recorded
def fourierft(
  pattern: str = r'attn/(q|v)$',
  count: int = 1000,
  scale: float = 150.0,
  *,
  seed: int = 777,
  spread: float = 1.0,
) -> PeftTransform:
  """Adds a matrix of few frequencies to matching linear sites.

  dW^T = scale Re(IDFT2(F)), where the inverse transform divides by d_in d_out and F [d_out, d_in]
  is zero except at n places, which all sites of one shape share. A site has n numbers; dW is formed
  by a fast Fourier transform in float32. The places are not part of the delta: they are drawn
  again from the seed, as torch's generator draws them, so keep the seed with a saved delta. Hugging
  Face's peft (`FOURIERFT`) has n = 1000, scaling 150, `random_loc_seed` 777 and coefficients of
  N(0, 1), so that a fresh delta changes the model; with `spread=0` it does not.

  Args:
    pattern: regex searched in the site path.
    count: n, the number of coefficients, from 1 to d_in d_out.
    scale: of the update.
    seed: of the places, below 2^32.
    spread: standard deviation of the coefficients at init.

  Raises:
    ValueError: for a count below 1, a scale that is not positive, a seed outside of its range, or a
      negative spread; at init, for a count above d_in d_out, or 2^32 / 20 entries or more.

  >>> import jax
  >>> from pecft_jax.peft import fourierft
  >>> from pecft_jax.backbones import pretrained
  >>> model = pretrained('vit_glyphs16')
  >>> transform = fourierft(r'attn/q$', count=50)
  >>> delta = transform.init(jax.random.key(0), model.backbone.sites, model.params)
  >>> delta['block_0/attn/q'].spectrum.shape
  (50,)
  """
  at_least(1, count=count)
  above(0, scale=scale)
  at_least(0, seed=seed, spread=spread)
  if seed >= 1 << 32:
    raise ValueError(f'seed must be below 2^32, got {seed}')

  def init_one(key, spec, weights):
    d_in, d_out = weights.main.shape
    if count > d_in * d_out:
      raise ValueError(
        f'{spec.site.path}: expected at most as many coefficients as its weight [{d_in}, {d_out}] '
        f'has entries, got {count}'
      )
    if d_in * d_out >= _LARGEST:
      raise ValueError(
        f'{spec.site.path}: expected a weight of fewer than {_LARGEST} entries, '
        f'got [{d_in}, {d_out}]'
      )
    return FourierftDelta(spread * jax.random.normal(key, (count,)))

  def update(delta, w):
    d_in, d_out = w.shape
    # Row and column of F; those of dW, which is transposed, are the other way round.
    out, into = np.divmod(places(d_in * d_out, count, seed), d_in)
    grid = jnp.zeros((d_in, d_out)).at[into, out].set(delta.spectrum)
    return scale * jnp.fft.ifft2(grid).real

  def run(delta, next_fn, x, w, b):
    return next_fn(x, w, b) + product(x, update(delta, w))

  return per_site('linear', pattern, init_one, run, update=update)


@functools.lru_cache(64)
def places(size: int, count: int, seed: int) -> np.ndarray:
  """The first entries [count] of a random permutation of `size` numbers, as in torch.

  Those of `torch.randperm(size, generator=torch.Generator().manual_seed(seed))` on a CPU: one
  number of a Mersenne twister for each step of a shuffle from the front.

  >>> places(10, 3, seed=777).tolist()
  [5, 9, 0]
  """
  draws = np.random.RandomState(seed).randint(0, 1 << 32, count, np.uint32)
  moved: dict[int, int] = {}  # What the shuffle has put at places that it has not come to.
  found = []
  for i, draw in enumerate(draws.tolist()):
    j = i + draw % (size - i)
    found.append(moved.get(j, j))
    moved[j] = moved.get(i, i)
  return np.array(found)
