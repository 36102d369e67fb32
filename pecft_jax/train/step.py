"""The jitted functions of a run; nothing else in the library jits.

Each is compiled once for a whole sequence: a new task changes values, never
shapes. Frozen weights are always an argument, so they are never constants of
a program, and never differentiated.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.devices.sharding import (
  Layout,
  batched,
  check_rules,
  replicated,
  seed_axis,
  stacked_sharding,
  traced_on,
  tree_shardings,
)
from pecft_jax.train.optimizer import Recipe
from pecft_jax.train.state import init_state, key_for
from pecft_jax.typing import (
  Array,
  Batch,
  ContinualMethod,
  Env,
  Key,
  Params,
  Task,
  TrainState,
  keep,
)


class Counts(NamedTuple):
  """Sums over the examples of one test set."""

  correct: Array  # [] int32, among all classes seen.
  aware: Array  # [] int32, correct among the classes of the example's own task.
  total: Array  # [] int32


class StepLog(NamedTuple):
  """What one update tells."""

  loss: Array  # []
  correct: Array  # [] int32, training examples right among the classes seen.
  total: Array  # [] int32
  finite: Array  # [] bool, whether all parameters are numbers after it.


class Steps(NamedTuple):
  """Compiled functions; those that take a state consume it, but for `predict`.

  With several seeds, state, training batches, logs and counts have a leading
  axis S, and `init` takes S keys; all else is shared.

  Attributes:
    init: `(key, frozen) -> state`
    begin: `(state, frozen, task) -> state`
    prepare: `(state, frozen, batch) -> state`, or None where the method has no such pass.
    train: `(state, frozen, batch) -> (state, StepLog)`
    consolidate: `(state, frozen, batch) -> state`, or None.
    end: `(state, frozen) -> state`
    predict: `(state, frozen, batch, classes, counts) -> counts`, where `classes`
      [C] are those of the batch's own task.
    query: `(frozen, x) -> [B, D]`, or None.
    state_shardings: of the state.
    frozen_shardings: of the frozen weights.
    batch_sharding: of every array of a batch.
    train_batch_sharding: of every array of a training batch.
    counts_sharding: of counts: whole on every device.
    seed_axes: 1 where there is a leading axis for seeds, else 0.
  """

  init: Callable[..., TrainState]
  begin: Callable[..., TrainState]
  prepare: Callable[..., TrainState] | None
  train: Callable[..., tuple[TrainState, StepLog]]
  consolidate: Callable[..., TrainState] | None
  end: Callable[..., TrainState]
  predict: Callable[..., Counts]
  query: Callable[..., Array] | None
  state_shardings: Any
  frozen_shardings: Any
  batch_sharding: Any
  train_batch_sharding: Any
  counts_sharding: Any
  seed_axes: int


def train_step(
  method: ContinualMethod, recipe: Recipe, state: TrainState, frozen: Params, batch: Batch
) -> tuple[TrainState, StepLog]:
  """One update, as a pure function. Its randomness is a function of the step's number alone."""
  task = state.task
  env = Env(frozen, task)
  k_loss, k_observe = jax.random.split(key_for(state, task, state.step))
  grad_fn = jax.value_and_grad(method.loss, has_aux=True)
  (loss, out), grads = grad_fn(state.params, state.memory, env, batch, k_loss)
  grads = method.project(grads, state.memory, env)
  progress = (state.step - task.start) / task.steps
  updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params, progress=progress)
  params = optax.apply_updates(state.params, updates)
  memory = method.observe(params, state.memory, env, batch, out, k_observe)
  guess = jnp.where(task.seen, out.logits, -jnp.inf).argmax(-1)
  right = ((guess == batch.y) & batch.valid).sum(dtype=jnp.int32)
  finite = jax.tree.reduce(lambda ok, leaf: ok & jnp.isfinite(leaf).all(), params, jnp.array(True))
  log = StepLog(loss, right, batch.valid.sum(dtype=jnp.int32), finite)
  return state._replace(params=params, opt_state=opt_state, memory=memory, step=state.step + 1), log


def compile_steps(
  method: ContinualMethod, recipe: Recipe, layout: Layout, frozen: Params, *, stacked: bool = False
) -> Steps:
  """Jits the functions of a method for a layout of devices.

  Args:
    method: any.
    recipe: the optimizer.
    layout: mesh and sharding rules.
    frozen: the backbone's weights, or their shapes.
    stacked: whether the functions are those of several seeds at once, on a
      leading axis; it is split over the mesh's axis `seed`, if it has one.

  Raises:
    ValueError: if a rule of the layout does not fit, or is of no use.
  """

  def init(key: Key, frozen: Params) -> TrainState:
    return init_state(method, recipe, key, frozen)

  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), frozen)
  state = jax.eval_shape(init, key, frozen)
  check_rules(layout, state, frozen)
  state_s, frozen_s = tree_shardings(layout, state), tree_shardings(layout, frozen)
  batch_s, one = batched(layout), replicated(layout)
  train_batch_s = batch_s
  if stacked:
    state_s = jax.tree.map(stacked_sharding, state_s)
    train_batch_s = stacked_sharding(batch_s)

  def begin(state: TrainState, frozen: Params, task: Task) -> TrainState:
    task = task._replace(start=state.step)
    key = key_for(state, task, 2**32 - 1)  # A number that no training step has.
    params, memory = method.begin_task(state.params, state.memory, Env(frozen, task), key)
    return state._replace(params=params, memory=memory, opt_state=recipe.tx.init(params), task=task)

  def gather(hook):
    def run(state: TrainState, frozen: Params, batch: Batch) -> TrainState:
      memory = hook(state.params, state.memory, Env(frozen, state.task), batch)
      return state._replace(memory=memory)

    return run

  def train(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, StepLog]:
    return train_step(method, recipe, state, frozen, batch)

  def end(state: TrainState, frozen: Params) -> TrainState:
    params, memory = method.end_task(state.params, state.memory, Env(frozen, state.task))
    # The next task starts with a fresh one; zeros take no room in the checkpoints that are kept.
    return state._replace(params=params, memory=memory, opt_state=recipe.tx.init(params))

  def predict(
    state: TrainState, frozen: Params, batch: Batch, classes: Array, counts: Counts
  ) -> Counts:
    logits = method.predict(state.params, state.memory, Env(frozen, state.task), batch.x)
    right = lambda logits: ((logits.argmax(-1) == batch.y) & batch.valid).sum(dtype=jnp.int32)
    return Counts(
      counts.correct + right(logits),
      counts.aware + right(jnp.where(classes, logits, -jnp.inf)),
      counts.total + batch.valid.sum(dtype=jnp.int32),
    )

  def jit(fn, inputs, outputs, axes, donate=True):
    fn = traced_on(layout, fn)
    if stacked:
      fn = jax.vmap(fn, in_axes=axes, spmd_axis_name=seed_axis(layout))
    return jax.jit(
      fn, in_shardings=inputs, out_shardings=outputs, donate_argnums=(0,) if donate else ()
    )

  def gathering(hook):
    if hook is keep:
      return None
    return jit(gather(hook), (state_s, frozen_s, batch_s), state_s, (0, None, None))

  query = None
  if method.query is not None:
    # Whole everywhere: a shuffled batch may hold any example.
    query = jax.jit(method.query, in_shardings=(frozen_s, batch_s), out_shardings=one)
  inputs, shared = (state_s, frozen_s, batch_s, one, one), None
  return Steps(
    init=jit(init, (one, frozen_s), state_s, (0, shared), donate=False),
    begin=jit(begin, (state_s, frozen_s, one), state_s, (0, shared, shared)),
    prepare=gathering(method.prepare),
    train=jit(train, (state_s, frozen_s, train_batch_s), (state_s, one), (0, shared, 0)),
    consolidate=gathering(method.consolidate),
    end=jit(end, (state_s, frozen_s), state_s, (0, shared)),
    predict=jit(predict, inputs, one, (0, shared, shared, shared, 0), donate=False),
    query=query,
    state_shardings=state_s,
    frozen_shardings=frozen_s,
    batch_sharding=batch_s,
    train_batch_sharding=train_batch_s,
    counts_sharding=one,
    seed_axes=int(stacked),
  )


JITTED = ('train', 'begin', 'prepare', 'consolidate', 'end', 'predict', 'query')


def compilations(steps: Steps, before: Mapping[str, int]) -> dict[str, int]:
  """How often each jitted function was compiled, the most in one process.

  Args:
    steps: of this process.
    before: the result in earlier processes of the run.

  Returns:
    Counts by name; functions that never ran are left out.
  """
  here = {name: getattr(steps, name) for name in JITTED}
  counts = {
    name: max(0 if step is None else step._cache_size(), before.get(name, 0))
    for name, step in here.items()
  }
  return {name: count for name, count in counts.items() if count}
