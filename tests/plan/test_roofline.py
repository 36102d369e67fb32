import pytest

from pecft_jax.plan import CHIPS, Chip, times

CHIP = Chip(
  'toy', bf16=100.0, float32=50.0, memory=1000.0, bandwidth=10.0, link=2.0, sources=('none',)
)


def test_each_resource_is_busy_for_as_long_as_its_peak_says():
  got = times(CHIP, 300.0, traffic=20.0, sent=1.0)
  assert got == (3.0, 2.0, 0.5)
  assert got.bound == 'compute'
  assert got.step(1.0) == 3.0
  assert got.step(0.25) == 12.0
  assert times(CHIP, 300.0, 20.0, 1.0, 'float32').compute == 6.0


def test_the_busiest_resource_sets_the_time():
  assert times(CHIP, 100.0, traffic=20.0, sent=0.0).bound == 'memory'
  assert times(CHIP, 100.0, traffic=20.0, sent=8.0) == (1.0, 2.0, 4.0)


def test_a_large_product_takes_its_flops_over_the_peak():
  # 8192^3 in bfloat16 on an H100: 2 x 8192^3 / 989.4e12 s.
  got = times(CHIPS['h100'], 2 * 8192**3, traffic=3 * 2 * 8192**2, sent=0.0)
  assert got.bound == 'compute'
  assert got.step(1.0) == pytest.approx(1.111e-3, rel=1e-3)


@pytest.mark.parametrize('share', [0.0, 1.5, -0.1])
def test_a_share_of_the_roofline_is_between_nothing_and_all(share):
  with pytest.raises(ValueError, match='utilisation must be in'):
    times(CHIP, 0.0, 1.0, 0.0).step(share)
