"""Against numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.memory.symmetric import (
  lower,
  lower_product,
  no_products,
  trace,
  whole,
  with_products,
)

RNG = np.random.default_rng(0)
ROWS, SIZE = 17, 11
A = RNG.normal(size=(ROWS, SIZE)).astype(np.float32)
D = RNG.normal(size=SIZE).astype(np.float32)
EXACT = 2 * (A.astype(np.float64).T @ A + np.outer(D, D).astype(np.float64))


def twice(block):
  add = jax.jit(with_products)
  return add(add(no_products(SIZE, block), A, D), A, D)


@pytest.mark.parametrize('block', [None, 1, 3, 4, 10, 11])
def test_blocks_hold_the_products_of_all_columns(block):
  blocks = twice(block)
  found = whole(blocks, SIZE)
  np.testing.assert_allclose(found, EXACT, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found, found.T)
  half = np.tril(lower(blocks, SIZE))
  np.testing.assert_array_equal(half, np.tril(found))
  np.testing.assert_allclose(trace(blocks), np.trace(EXACT), rtol=1e-6)


def test_padding_of_the_last_block_stays_zero():
  last = np.asarray(twice(4)[-1])
  assert not last[3].any() and not last[:, 3].any()


def test_large_matrices_take_little_more_than_half():
  for size, most in {1024: 1.0, 1025: 1.2, 2048: 0.75, 4096: 0.63, 10_000: 0.58}.items():
    shape = jax.eval_shape(functools.partial(no_products, size))
    assert shape.size <= most * size**2


def test_rows_of_another_width_are_refused():
  with pytest.raises(AssertionError):
    with_products(no_products(SIZE, 4), A[:, :7], D[:7])


def test_a_product_of_many_rows_is_that_of_numpy_below_the_diagonal():
  rows = RNG.normal(size=(1100, 3)).astype(np.float32)
  found = np.asarray(jax.jit(lower_product)(rows))
  exact = rows.astype(np.float64) @ rows.T
  np.testing.assert_allclose(np.tril(found), np.tril(exact), rtol=1e-5, atol=1e-5)
  assert not found[0, 512:].any()


def test_half_of_the_multiplications_are_left_out():
  flops = lambda f, *shapes: jax.jit(f).lower(*shapes).compile().cost_analysis()['flops']
  rows = jax.ShapeDtypeStruct((2048, 64), jnp.float32)
  assert flops(lower_product, rows) < 0.65 * flops(lambda a: a @ a.T, rows)
