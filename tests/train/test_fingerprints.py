"""Fingerprints of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.train.fingerprints import fingerprint, hash_of

DTYPES = ('float32', 'bfloat16', 'int8', 'bool', 'int32', 'int4')


def of(tree):
  return np.asarray(fingerprint(tree)).tobytes()


@pytest.mark.parametrize('dtype', DTYPES)
def test_one_changed_element_changes_all_of_it(dtype):
  a = jnp.zeros((3, 5), dtype)
  b = a.at[2, 3].set(jnp.ones((), dtype))
  assert of(a) == of(jnp.copy(a))
  assert not (np.asarray(fingerprint(a)) == np.asarray(fingerprint(b))).any()


def test_places_shapes_dtypes_and_leaves_count():
  rng = np.random.default_rng(0)
  a = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
  trees = [
    a, a.T, a.reshape(6, 4), a[::-1], jnp.roll(a, 1), {'a': a, 'b': a}, a.view(jnp.int32),
    {'a': a[:2], 'b': a[2:]}, {'a': a[2:], 'b': a[:2]}, -a, {},
    jnp.zeros(2), jnp.zeros(3), -jnp.zeros(2),
    a.astype(jnp.bfloat16), jax.random.key(0), jax.random.key(1), a[:, :0],
  ]  # fmt: skip
  assert len({of(tree) for tree in trees}) == len(trees)


def test_it_is_the_same_in_and_out_of_jit_and_for_each_of_a_stack():
  a = jnp.arange(24.0).reshape(2, 12)
  rows = jax.jit(jax.vmap(fingerprint))(a)
  assert [row.tobytes() for row in np.asarray(rows)] == [of(a[0]), of(a[1])]


def test_hashes_of_texts_are_those_of_fnv():
  # Vectors of draft-eastlake-fnv.
  assert [hash_of(text) for text in ('a', 'foobar')] == [0xE40C292C, 0xBF9CF968]
