"""Fingerprints of arrays on their devices: equal for equal bits, however they are sharded."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array

_LANES = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def fingerprint(tree: Any) -> Array:
  """128 bits over dtypes, shapes and bits of all leaves: uint32 [4].

  Each word is hashed with its place, and the hashes are added up, so that no leaf is gathered and
  every order of the sum gives the same bits. It distinguishes weights that were trained, not those
  that somebody made to collide.

  >>> a, b = jnp.ones(3), jnp.ones(3).at[2].set(1.0000001)
  >>> bool((fingerprint({'a': a}) == fingerprint({'a': a})).all())
  True
  >>> bool((fingerprint({'a': a}) == fingerprint({'a': b})).any())
  False
  """
  lanes = jnp.array(_LANES, jnp.uint32)
  total = lanes
  for number, leaf in enumerate(jax.tree.leaves(tree)):
    words = _words(jnp.asarray(leaf))
    place = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
    kind = jnp.uint32(hash_of(f'{number} {leaf.dtype} {leaf.shape}'))
    for lane in range(len(_LANES)):
      mark = lanes[lane]
      each = _mixed(_mixed(words + mark) ^ _mixed(place * mark + kind))
      # An array without elements counts, too.
      total = total.at[lane].add(each.sum(dtype=jnp.uint32) + _mixed(kind ^ mark))
  return total


def hash_of(text: str) -> int:
  """32 bits of a text (FNV-1a), the same in every process.

  >>> hash_of('')
  2166136261
  """
  value = 2166136261
  for byte in text.encode():
    value = (value ^ byte) * 16777619 % 2**32
  return value


def _words(leaf: Array) -> Array:
  """The bits of an array as uint32; the lower and the upper half of 64 bits apart."""
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  whole = leaf.dtype == jnp.bool_ or jnp.issubdtype(leaf.dtype, jnp.integer)
  if whole and leaf.dtype.itemsize == 1:
    leaf = leaf.astype(jnp.uint8)  # Those below a byte, too.
  if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
    leaf = jnp.stack([leaf.real, leaf.imag])
  bits = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)


def _mixed(word: Array) -> Array:
  """The finalizer of MurmurHash3: each bit of a word changes each bit of the result."""
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)
