import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core import finite


@pytest.mark.parametrize('dtype', [np.float32, np.float16, jnp.bfloat16])
def test_finite_numbers_pass(dtype):
  finite.check_finite('w', np.ones((2, 3), dtype))
  finite.check_finite('w', np.ones((), dtype))
  finite.check_finite('w', np.ones((0, 3), dtype))


@pytest.mark.parametrize('dtype', [np.float32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_the_place_is_told(dtype, value, monkeypatch):
  monkeypatch.setattr(finite, '_CHUNK', 4)
  w = np.ones((3, 5), dtype)
  w[1, 2] = value
  with pytest.raises(ValueError, match=r'w is not finite: -?(nan|inf) at \[1, 2\]'):
    finite.check_finite('w', w)


@pytest.mark.parametrize('dtype', [np.int32, bool, np.complex64])
def test_other_types_are_refused(dtype):
  with pytest.raises(ValueError, match='expected floating-point numbers'):
    finite.check_finite('w', np.ones(3, dtype))
