import pytest

from pecft_jax.plan import CHIPS, find_chip


def test_every_chip_has_the_figures_of_its_vendor():
  assert list(CHIPS) == ['v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100', 'h200']
  for chip in CHIPS.values():
    assert any('cloud.google.com' in source or 'nvidia.com' in source for source in chip.sources)
    # Operations per byte of memory and of links, between which chips of these years lie.
    assert 100 < chip.bf16 / chip.bandwidth < 600
    assert 700 < chip.bf16 / chip.link < 3000
    assert 16e9 <= chip.memory <= 141e9


def test_float32_products_are_rounded_to_what_the_chip_multiplies():
  for name, chip in CHIPS.items():
    assert chip.bf16 / chip.float32 == (1 if name.startswith('v') else 2)


def test_chips_are_found_by_either_name():
  assert find_chip('H100') is find_chip('H100 SXM') is CHIPS['h100']
  with pytest.raises(ValueError, match="unknown chip 'h10'; did you mean 'h100'"):
    find_chip('h10')
