"""Quadratic programmes over the nonnegative orthant, of constant shape."""

import jax
import jax.numpy as jnp

from pecft_jax.typing import Array


def nonnegative_minimum(square: Array, linear: Array, allowed: Array) -> Array:
  """argmin_v v'Pv / 2 + c'v over v >= 0, with v_i = 0 where it is not allowed: [n].

  The active set method of Lawson and Hanson (Solving least squares problems, 1974,
  chapter 23): it ends at the exact minimum, up to rounding, and at most after 10 n solutions
  of linear equations. Usually there are about n.

  Args:
    square: P [n, n], symmetric and positive definite among what is allowed.
    linear: c [n]
    allowed: [n] bool

  >>> import jax.numpy as jnp
  >>> square, linear = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, -2.0])
  >>> [round(float(v), 4) for v in nonnegative_minimum(square, linear, jnp.array([True, True]))]
  [0.0, 1.0]
  """
  n = linear.shape[0]
  # Gradients of tasks differ in size; with a diagonal of ones the equations are as well
  # conditioned as can be.
  size = jnp.sqrt(jnp.where(allowed & (jnp.diag(square) > 0), jnp.diag(square), 1))
  p, c = square / (size[:, None] * size[None, :]), linear / size
  least = 1e-6 * jnp.where(allowed, jnp.abs(c), 0).max()

  def free_minimum(free):
    """The minimum over the free entries, the others being zero."""
    both = free[:, None] & free[None, :]
    matrix = jnp.where(both, p, jnp.eye(n))
    return jnp.where(free, jnp.linalg.solve(matrix, jnp.where(free, -c, 0)), 0)

  def gain(v, free):
    """How fast the value falls as an entry grows; what is free has reached its best."""
    return jnp.where(allowed & ~free, -(c + jnp.matmul(p, v, precision='highest')), -jnp.inf)

  def unfinished(state):
    v, free, settled, steps = state
    return (steps < 10 * n) & (~settled | (gain(v, free) > least).any())

  def step(state):
    v, free, settled, steps = state
    grown = free.at[gain(v, free).argmax()].set(True)
    free = jnp.where(settled, grown, free)
    goal = free_minimum(free)
    bad = free & (goal <= 0)
    # As far towards the goal as all entries stay nonnegative; what reaches zero is free no more.
    share = jnp.where(bad, v / jnp.where(bad, v - goal, 1), jnp.inf)
    way = jnp.minimum(share.min(), 1)
    there = ~bad.any()
    moved = jnp.where(there, goal, jnp.maximum(v + way * (goal - v), 0))
    stuck = bad & (share <= way)
    moved = jnp.where(stuck, 0, moved)
    return moved, free & ~stuck, there, steps + 1

  start = jnp.zeros(n), jnp.zeros(n, bool), jnp.array(True), jnp.zeros((), jnp.int32)
  return jax.lax.while_loop(unfinished, step, start)[0] / size
