from pecft_jax.backbones import vit
from pecft_jax.backbones.core.sites import layered


def test_one_block_tells_the_sites_of_all(tiny, sizes):
  assert layered(vit(**{**sizes, 'depth': 1}).sites, 3) == tiny.sites
