"""Leaves that are not finite are named, on the host and on devices."""

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.devices.finite_leaves import not_finite_in


def test_nan_and_infinities_are_named_in_order():
  tree = {
    'a': np.ones(3, np.float32),
    'b': {'c': np.float32([1, np.inf]), 'd': jnp.array([jnp.nan, 1.0], jnp.bfloat16)},
    'e': np.array([np.nan], jnp.bfloat16),
    'ids': np.arange(3),
    'name': 'text',
  }
  assert not_finite_in(tree) == ['b/c', 'b/d', 'e']


def test_arrays_over_several_devices_are_checked_there():
  mesh = jax.make_mesh((1,), ('data',))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  assert not_finite_in({'x': jax.device_put(jnp.array([1.0, -jnp.inf]), split)}) == ['x']


def test_nothing_is_finite():
  assert not_finite_in({}) == []
