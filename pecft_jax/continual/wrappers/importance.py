"""Parameters held by their importance: gradients of single examples, and the penalty."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import held_of
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.typing import Array, Batch, ContinualMethod, Env, Output, Params

Score = Callable[[Output, Array], Array]  # (output of one example, its target [1, ...]) -> []


def need_held(name: str, inner: ContinualMethod, params: Params) -> Params:
  """The parameters of a method that a wrapper holds; see `held_of`.

  Raises:
    ValueError: if there is none.
  """
  held = held_of(inner, params)
  if not jax.tree.leaves(held):
    raise ValueError(
      f'{name} has no parameters to hold in {inner.name}: all are reset at each task'
    )
  return held


def weighted_squares(weights: Params, anchor: Params, params: Params) -> Array:
  """sum_i w_i (theta_i - anchor_i)^2, over three trees of one structure: []."""
  term = lambda w, a, p: (w * jnp.square(p - a)).sum()
  terms = jax.tree.map(term, weights, anchor, params)
  return sum(jax.tree.leaves(terms), jnp.zeros(()))


def summed_gradients(
  inner: ContinualMethod,
  params: Params,
  memory: Any,
  env: Env,
  batch: Batch,
  score: Score,
  of: Callable[[Array], Array],
) -> Params:
  """The sum over a batch of a function of each example's own gradient, as `held_of` has it.

  Args:
    inner: whose parameters are differentiated.
    params: of it.
    memory: of it.
    env: of the task.
    batch: rows that are not valid do not count.
    score: what is differentiated.
    of: of each entry of a gradient, such as its square.
  """
  kept = split_kept(params)[1]

  def scored(part: Params, x: Any, y: Array) -> Array:
    whole = {name: combine(part[name], kept[name]) for name in part}
    return score(inner.forward({**params, **whole}, memory, env, x, None), y)

  return summed_over_examples(scored, held_of(inner, params), batch, of)


def summed_over_examples(
  scored: Callable[[Params, Any, Array], Array],
  params: Params,
  batch: Batch,
  of: Callable[[Array], Array],
) -> Params:
  """The sum over a batch of a function of each example's own gradient.

  Args:
    scored: `(params, x, y) -> []` of one example, whose arrays have a leading axis of 1.
    params: what is differentiated.
    batch: rows that are not valid do not count.
    of: of each entry of a gradient, such as its square.
  """

  def one(x: Any, y: Array, valid: Array) -> Params:
    grads = jax.grad(scored)(params, jax.tree.map(lambda a: a[None], x), y[None])
    return jax.tree.map(lambda g: jnp.where(valid, of(g), 0.0), grads)

  def add(sums: Params, examples: Any) -> tuple[Params, None]:
    # One gradient per example, on the device of the example.
    each = jax.vmap(one, spmd_axis_name='data')(*examples)
    return jax.tree.map(lambda s, g: s + g.sum(0), sums, each), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(add, zeros, _in_chunks((batch.x, batch.y, batch.valid), 16))[0]


def _in_chunks(tree: Any, most: int) -> Any:
  """Leading axis B to [number of chunks, rows of each], with zeros at the end.

  A chunk has rows from all over the batch, and so from every device.
  """
  rows = jax.tree.leaves(tree)[0].shape[0]
  count = -(-rows // most)
  size = -(-rows // count)

  def one(a: Array) -> Array:
    a = jnp.pad(a, [(0, size * count - rows)] + [(0, 0)] * (a.ndim - 1))
    return a.reshape(size, count, *a.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(one, tree)
