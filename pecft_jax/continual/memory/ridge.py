"""Ridge regression in float32, and the choice of its strength on held-out examples."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.moments import Moments
from pecft_jax.continual.memory.symmetric import dot, lower, lower_product, trace
from pecft_jax.typing import Array

RIDGES = tuple(10.0**power for power in range(-8, 9))
# Errors this near to the least count as equal to it; float32 often cannot distinguish them.
TIE = 1e-3


class Examples(NamedTuple):
  """The examples of a regression."""

  h: Array  # [N, M] float32
  y: Array  # [N, C] float32
  valid: Array  # [N] bool; other rows are ignored.


def best_ridge(fit: Examples, held: Examples, *, least: Array | float) -> Array:
  """The ridge of `RIDGES` with the least squared error on `held` after a regression on `fit`.

  Of ridges whose errors are within `TIE` of the least it is the strongest, so
  that rounding, which differs between machines, decides nothing where the error
  is flat. Without a held-out example it is the weakest considered.

  Args:
    fit: the regression W = (H^T H + ridge I)^-1 H^T Y is on these.
    held: the examples on which its error is measured.
    least: smaller ridges are not considered.

  Returns:
    [] float32; the strongest of all if none is considered, or no system could be solved.

  Raises:
    AssertionError: for other shapes.
  """
  for h, y, valid in fit, held:
    chex.assert_shape([h, y, valid], [(None, fit.h.shape[1]), (None, fit.y.shape[1]), (None,)])
    chex.assert_equal_shape_prefix([h, y, valid], 1)
  ridges = jnp.asarray(RIDGES)
  error = held_out_error(fit, held)
  skip = lambda ridge: jnp.asarray(jnp.inf)
  errors = jax.lax.map(lambda ridge: jax.lax.cond(ridge >= least, error, skip, ridge), ridges)
  errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
  lowest = errors.min()
  strongest = ridges.size - 1 - jnp.argmax((errors <= (1 + TIE) * lowest)[::-1])
  at = jnp.where(held.valid.any(), strongest, jnp.argmin(errors))
  return ridges[jnp.where(jnp.isfinite(lowest), at, ridges.size - 1)]


def held_out_error(fit: Examples, held: Examples) -> Callable[[Array], Array]:
  """ridge [] -> squared error [] on `held` of the regression on `fit`.

  Products are of centred rows A = H - 1 m^T, with m the mean of the n rows of
  `fit`, for the reason that `Moments` gives. As in `solve_moments`, with
  Z = (A^T A + ridge I)^-1 A^T Y and z = (A^T A + ridge I)^-1 m, the prediction
  for a row b + m is

    y_mean + b^T Z + (n b^T z - 1) (y_mean - m^T Z) / (1 + n m^T z),

  in which no large terms cancel, as they do in sums of squares.

  The system that is solved is the smaller one of [M, M] and [N, N].
  """
  count = fit.valid.sum(dtype=jnp.float32)
  share = fit.valid / jnp.maximum(count, 1)
  mean, mean_y = dot(share, fit.h), dot(share, fit.y)
  a, b = ((rows.h - mean) * rows.valid[:, None] for rows in (fit, held))
  y = (fit.y - mean_y) * fit.valid[:, None]
  size, width = a.shape
  along = (_primal if width <= size else _dual)(a, b, y, mean)

  def error(ridge: Array) -> Array:
    rows, common = along(ridge)
    lift = (count * rows[:, -1] - 1) / (1 + count * common[-1])
    guess = mean_y + rows[:, :-1] + jnp.outer(lift, mean_y - common[:-1])
    return (jnp.square(guess - held.y) * held.valid[:, None]).sum()

  return error


# `(ridge) -> (B [Z z], m^T [Z z])`: [N, C + 1] of the held-out rows B, and [C + 1].
_Along = Callable[[Array], tuple[Array, Array]]


def _primal(a: Array, b: Array, y: Array, mean: Array) -> _Along:
  """By a system of the size M of the features."""
  square = lower_product(a.T)
  cross = jnp.concatenate([dot(a.T, y), mean[:, None]], 1)

  def along(ridge: Array) -> tuple[Array, Array]:
    z = solve_ridge(square, cross, ridge)
    return dot(b, z), dot(mean, z)

  return along


def _dual(a: Array, b: Array, y: Array, mean: Array) -> _Along:
  """By a system of the size N of the examples: Z = A^T (K + ridge I)^-1 Y, K = A A^T,
  and z = (m - A^T (K + ridge I)^-1 A m) / ridge."""
  square, probe = lower_product(a), dot(b, a.T)
  fit_mean, held_mean, mean_mean = dot(a, mean), dot(b, mean), dot(mean, mean)
  cross = jnp.concatenate([y, fit_mean[:, None]], 1)

  def along(ridge: Array) -> tuple[Array, Array]:
    dual = solve_ridge(square, cross, ridge)
    rows, common = dot(probe, dual), dot(fit_mean, dual)
    rows = rows.at[:, -1].set((held_mean - rows[:, -1]) / ridge)
    return rows, common.at[-1].set((mean_mean - common[-1]) / ridge)

  return along


def least_ridge(moments: Moments) -> Array:
  """The weakest ridge that is not lost in the rounding of the products, in float32.

  These are rounded by eps times the trace, their sum of squares, at most; below
  sixteen times as much, held-out errors were seen to be off by tenths.
  """
  return 16 * jnp.finfo(jnp.float32).eps * trace(moments.half)


def solve_ridge(g: Array, q: Array, ridge: Array) -> Array:
  """(G + ridge I)^-1 Q by Cholesky: [M, M], [M, C], [] -> [M, C]; NaN where it is singular.

  Of the symmetric G the lower triangle is read.
  """
  factor = jax.scipy.linalg.cho_factor(g + ridge * jnp.eye(g.shape[0]), lower=True)
  return jax.scipy.linalg.cho_solve(factor, q)


def solve_moments(moments: Moments, ridge: Array) -> Array:
  """(H^T H + ridge I)^-1 H^T Y from centred products: [M, C]; NaN where it is singular.

  With Z = (gram + ridge I)^-1 cross and z = (gram + ridge I)^-1 mean, by the
  formula of Sherman and Morrison for H^T H = gram + n mean mean^T,

    W = Z + n z (mean_y - Z^T mean)^T / (1 + n mean^T z).
  """
  n, mean, mean_y, half, cross = moments
  both = solve_ridge(lower(half, len(mean)), jnp.concatenate([cross, mean[:, None]], 1), ridge)
  own, common = both[:, :-1], both[:, -1]
  rest = mean_y - dot(mean, own)
  return own + jnp.outer(n * common / (1 + n * dot(mean, common)), rest)


def solve_surely(moments: Moments, ridge: Array) -> tuple[Array, Array]:
  """`solve_moments` with the first of ridge, 10 ridge, .. that is solvable, and that ridge."""

  def unsolved(carry):
    w, ridge = carry
    return ~jnp.isfinite(w).all() & (ridge < RIDGES[-1])

  def stronger(carry):
    ridge = 10 * carry[1]
    return solve_moments(moments, ridge), ridge

  return jax.lax.while_loop(unsolved, stronger, (solve_moments(moments, ridge), ridge))
