"""SVFT, against numpy in float64."""

import numpy as np
import pytest
from layers import BIAS, W, X, noise, run, started, wide

from pecft_jax.peft import svft


def middle(values, size, band):
  """The band matrix entry by entry, in the documented order."""
  out, rest = np.zeros((size, size)), list(values)
  for offset in (0, *range(1, band + 1), *(-o for o in range(1, band + 1))):
    for i in range(size - abs(offset)):
      out[(i, i + offset) if offset >= 0 else (i - offset, i)] = rest.pop(0)
  assert not rest
  return out


@pytest.mark.parametrize('band', [0, 1, 5])
def test_the_band_stands_between_the_singular_vectors(band):
  peft = svft('fc', band)
  leaf = started(peft)
  assert leaf.values.shape == (6 * (2 * band + 1) - band * (band + 1),)
  leaf = leaf._replace(values=noise(*leaf.values.shape))
  changed = wide(leaf.u.value) @ middle(wide(leaf.values), 6, band) @ wide(leaf.v.value)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ (W + changed) + BIAS, atol=1e-5)
  np.testing.assert_allclose(peft.update({'fc': leaf}, 'fc', W), changed, atol=1e-5)


def test_the_diagonal_moves_the_singular_values():
  peft = svft('fc')
  leaf = started(peft)
  leaf = leaf._replace(values=np.full(6, 0.5, np.float32))
  new = np.linalg.svd(W + wide(peft.update({'fc': leaf}, 'fc', W)), compute_uv=False)
  np.testing.assert_allclose(new, np.linalg.svd(W, compute_uv=False) + 0.5, atol=1e-5)


def test_bad_bands_are_refused():
  with pytest.raises(ValueError, match='band must be at least 0, got -1'):
    svft(band=-1)
  with pytest.raises(ValueError, match=r'fc: expected a band below 6, .*, got 6'):
    started(svft('fc', band=6))
