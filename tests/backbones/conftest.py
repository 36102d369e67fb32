import jax
import numpy as np
import pytest

from pecft_jax.backbones import decoder, vit

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


# A head has 4 components; all other axes differ, too.
DECODER = {
  'vocabulary': 37, 'width': 24, 'depth': 3, 'heads': 6, 'kv_heads': 2, 'hidden': 20,
  'length': 16, 'pad': 36, 'rope_theta': 100.0, 'rope_factor': 4.0, 'rope_original': 150,
}  # fmt: skip


@pytest.fixture(scope='session')
def decoder_sizes():
  return DECODER


@pytest.fixture(scope='session')
def tiny_decoder():
  return decoder(**DECODER)


@pytest.fixture(scope='session')
def decoder_params(tiny_decoder):
  params = tiny_decoder.init(jax.random.key(0))
  noise = np.random.default_rng(0)
  # Larger than at init, so that attention is uneven, and no norm is at one.
  return jax.tree.map(lambda a: a + 0.3 * noise.normal(size=a.shape).astype(np.float32), params)


@pytest.fixture(scope='session')
def texts():
  """[5, 11]: whole, padded behind, padded before, padded at both ends, of one token."""
  ids = np.random.default_rng(1).integers(0, 36, (5, 11)).astype(np.int32)
  ids[1, 7:] = ids[2, :3] = ids[3, :2] = ids[3, 9:] = ids[4, 1:] = 36
  return ids
