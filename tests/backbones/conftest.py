import jax
import pytest

from pecft_jax.backbones import vit

# Every axis has another length, so that a transpose shows.
SIZES = {
  'image_size': 24, 'channels': 2, 'patch': 6, 'width': 20, 'depth': 3, 'heads': 4,
  'mlp_ratio': 3.0, 'mean': (0.4, 0.5), 'std': (0.2, 0.3),
}  # fmt: skip


@pytest.fixture(scope='session')
def sizes():
  return SIZES


@pytest.fixture(scope='session')
def tiny():
  return vit(**SIZES)


@pytest.fixture(scope='session')
def params(tiny):
  return tiny.init(jax.random.key(0))


@pytest.fixture(scope='session')
def images():
  return jax.random.normal(jax.random.key(1), (5, 24, 24, 2))
