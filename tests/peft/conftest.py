"""Fixtures of the tests of transforms."""

import jax
import jax.numpy as jnp
import pytest
from tiny_vit import DEPTH, NORMAL, SIZES, Tiny, shaken, split_qkv

from pecft_jax.backbones.core.stacks import stack_blocks
from pecft_jax.backbones.families.vit.model import vit


@pytest.fixture(scope='session')
def tiny() -> Tiny:
  model = vit(**SIZES, **NORMAL)
  params = shaken(jax.jit(model.init)(jax.random.key(0)), 1)
  return Tiny(
    model=model,
    params=params,
    stacked=vit(**SIZES, **NORMAL, scan=True),
    stacked_params=stack_blocks(params, DEPTH),
    split=vit(**SIZES, **NORMAL, fused=False),
    split_params=split_qkv(params),
    remat=vit(**SIZES, **NORMAL, remat=jax.checkpoint_policies.nothing_saveable),
    half=vit(**SIZES, **NORMAL, dtype=jnp.bfloat16),
    shallow=vit(**{**SIZES, 'depth': 1}, **NORMAL),
    images=jax.random.normal(jax.random.key(2), (7, 16, 16, 3)),
  )
