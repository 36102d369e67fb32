"""Weights with a delta merged into them, and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.paths import map_named
from pecft_jax.typing import Array, Delta, Inputs, Params, PeftTransform


class Merged(NamedTuple):
  """Merged parameters, and what to put back."""

  params: Params
  originals: dict[str, Array]  # The replaced leaves, by path.


def merged(peft: PeftTransform, delta: Delta, params: Params) -> Merged:
  """Puts a delta into the weights.

  The arithmetic is done in float32 whatever the weights are stored in; each
  leaf keeps its type, so the same compiled program serves the merged model.
  `merge_error` measures what rounding to that type does.

  Raises:
    ValueError: if the transform has no weight-space form.
  """
  if peft.merge is None:
    raise ValueError(
      'this transform cannot be merged: it, or a part of its chain, is no change of weights '
      '(a prompt, a prefix, an adapter with a non-linearity); apply it with peft= instead'
    )
  wide = jax.tree.map(_widened, params)
  new = peft.merge(delta, wide)
  originals: dict[str, Array] = {}

  def settle(name: str, old: Array, wide: Array, new: Array) -> Array:
    if new is wide:  # merge shares every leaf that it does not replace.
      return old
    originals[name] = old
    return jnp.asarray(new, old.dtype)

  return Merged(map_named(settle, params, wide, new), originals)


def unmerge(merged: Merged) -> Params:
  """The parameters from before `merged`, bit by bit."""
  return map_named(merged.originals.get, merged.params)


def merge_error(
  apply: Callable[..., Any], peft: PeftTransform, delta: Delta, params: Params, inputs: Inputs
) -> Array:
  """The largest absolute difference that merging makes to any output.

  Args:
    apply: `(params, inputs, delta=None, *, peft=None) -> pytree of arrays`, as
      in `Backbone`.
    peft: a transform with a weight-space form.
    delta: its delta.
    params: of the model.
    inputs: one batch.

  Returns:
    [] float32
  """
  outputs = apply(params, inputs, delta, peft=peft)
  again = apply(merged(peft, delta, params).params, inputs)
  gaps = jax.tree.map(lambda a, b: jnp.abs(_widened(a) - _widened(b)).max(), outputs, again)
  return jnp.stack(jax.tree.leaves(gaps)).max()


def _widened(leaf: Array) -> Array:
  leaf = jnp.asarray(leaf)
  narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
  return leaf.astype(jnp.float32) if narrow else leaf
