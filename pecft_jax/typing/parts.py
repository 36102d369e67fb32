"""Answers at test time, in parts that need not be computed again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.typing.arrays import Array, Inputs, Params
from pecft_jax.typing.tasks import Env


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
  """A `PredictHook` in two steps: values per example from each of S slots, and the answers.

  A slot is what stays as it is once it was learned: the subspace of a task, or the frozen backbone
  itself. Its part of an example depends on the frozen weights, on what `weights` gives, and on
  nothing else, so an evaluation that meets the same weights and the same batch again reads the
  part where it was kept. Weights that change are no mistake: their parts are computed again.

  Called as a hook it is both steps in one program, so that a method has one definition of its
  answers. A method whose `predict` is replaced by a plain function has no parts.

  Attributes:
    weights: `(params, memory, env, slot) -> pytree of arrays`, all that the part of a slot reads
      besides the backbone's weights; `{}` for the backbone alone. `slot` is [] int32.
    part: `(frozen, weights, x) -> pytree of [B, ...]`, such as features [B, D]. Row i depends on
      example i alone.
    combine: `(params, memory, env, parts, x) -> answers`, as `predict` gives them. `parts` has
      leaves [S, B, ...]; those of slots that are not used are zero.
    slots: S, the same for the whole sequence.
    used: `(env) -> [] int32`, how many slots, from the first one, an answer needs now; None for
      all of them.

  Example:
    >>> head = lambda params, memory, env, parts, x: parts[0] @ params
    >>> mean = lambda frozen, weights, x: x.mean(-1, keepdims=True)
    >>> predict = Parts(lambda params, memory, env, slot: {}, mean, head)
    >>> x = jnp.array([[1.0, 3.0], [2.0, 4.0]])
    >>> predict(jnp.array([[10.0]]), {}, Env({}, None), x).tolist()
    [[20.0], [30.0]]
  """

  weights: Callable[[Params, Any, Env, Array], Any]
  part: Callable[[Params, Any, Inputs], Any]
  combine: Callable[[Params, Any, Env, Any, Inputs], Array]
  slots: int = 1
  used: Callable[[Env], Array] | None = None

  def __call__(self, params: Params, memory: Any, env: Env, x: Inputs, /) -> Array:
    """Answers at test time, without anything kept."""

    def one(slot: Any) -> Any:
      return self.part(env.frozen, self.weights(params, memory, env, slot), x)

    def put(slot: Any, parts: Any) -> Any:
      return jax.tree.map(lambda all_of, new: all_of.at[slot].set(new), parts, one(slot))

    first = jnp.zeros((), jnp.int32)
    if self.slots == 1 and self.used is None:
      parts = jax.tree.map(lambda leaf: leaf[None], one(first))
    else:
      shapes = jax.eval_shape(one, first)
      zeros = lambda leaf: jnp.zeros((self.slots, *leaf.shape), leaf.dtype)
      # A traced bound: compiled once, and costs what is used.
      parts = jax.lax.fori_loop(0, self.count(env), put, jax.tree.map(zeros, shapes))
    return self.combine(params, memory, env, parts, x)

  def count(self, env: Env) -> Array:
    """How many slots an answer needs now: [] int32."""
    return jnp.asarray(self.slots if self.used is None else self.used(env), jnp.int32)
