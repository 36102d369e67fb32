"""Compiled functions without a run: their arguments as shapes, so that nothing is allocated."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.problems import Judged
from pecft_jax.train.state import no_task
from pecft_jax.train.step import Steps
from pecft_jax.typing import Batch, ContinualMethod, Params


class Arguments(NamedTuple):
  """Arguments of the functions of a run, as `jax.ShapeDtypeStruct`s with shardings.

  `steps.train.lower(*arguments.train).compile()` has the memory of a step on each device in
  `memory_analysis()`, and the communication between devices in `as_text()`, however large the model
  is.
  """

  init: tuple[Any, ...]
  begin: tuple[Any, ...]
  gather: tuple[Any, ...]  # Of `prepare` and `consolidate`.
  train: tuple[Any, ...]
  end: tuple[Any, ...]
  predict: tuple[Any, ...]
  query: tuple[Any, ...]


def arguments(steps: Steps, method: ContinualMethod, frozen: Params, batch_size: int) -> Arguments:
  """The arguments of compiled functions.

  Args:
    steps: from `compile_steps(method, ...)`.
    method: whose functions they are.
    frozen: the backbone's weights, or their shapes.
    batch_size: over all devices.
  """
  put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  frozen = jax.tree.map(put, frozen, steps.frozen_shardings)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.tree.map(put, jax.eval_shape(steps.init, key, frozen), steps.state_shardings)
  spec = method.inputs

  def rows(shape: tuple[int, ...], dtype: Any) -> Any:
    sharding = steps.batch_sharding
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

  whole = lambda tree: jax.tree.map(lambda leaf: put(leaf, steps.counts_sharding), tree)
  x, number = rows(spec.shape, spec.dtype), rows((), jnp.int32)
  target = method.capacity.problem.target
  slot = None if method.joined is None else number
  batch = Batch(x, rows(target.shape, target.dtype), rows((), bool), number)
  task = whole(jax.eval_shape(lambda: no_task(method.capacity)))
  # A test set of each task; there is none of a probe.
  sets = method.capacity.tasks
  table = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=steps.counts_sharding)
  count: Any = table((sets,), jnp.int32)
  score: Any = table((sets,), steps.score_dtype)
  classes, counted = table((sets, method.capacity.classes), bool), table((sets,), bool)
  hits: Any = None
  if steps.hits_shape is not None:
    hits = jax.ShapeDtypeStruct(steps.hits_shape, jnp.int32, sharding=steps.counts_sharding)
  return Arguments(
    init=(whole(key), frozen),
    begin=(state, frozen, task),
    gather=(state, frozen, batch),
    train=(state, frozen, batch._replace(slot=slot)),
    end=(state, frozen),
    predict=(state, frozen, batch, number, classes, counted, Judged(score, score, count, hits)),
    query=(frozen, x),
  )
