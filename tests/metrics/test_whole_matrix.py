"""The metrics of Díaz-Rodríguez et al."""

import numpy as np
import pytest

from pecft_jax.metrics import diaz_rodriguez

from .worked_example import MATRIX, SEEN


def test_worked_example():
  np.testing.assert_allclose(
    np.array(diaz_rodriguez(MATRIX)), [0.825, -0.083333, 0.916667, 0.0, 0.1], atol=1e-6
  )
  assert diaz_rodriguez(SEEN).fwt is None
  with pytest.raises(ValueError, match='at least two finished tasks'):
    diaz_rodriguez([[0.9, 0.1]])
