"""One update of the parameters, in training and in the fits of a method."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.continual.core import check_output, raw
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.recipes import Recipe
from pecft_jax.train.guard import calling, carried, check_loss, pair
from pecft_jax.train.state import key_for, own_key
from pecft_jax.typing import (
  Array,
  Batch,
  ContinualMethod,
  Env,
  Fit,
  Output,
  Params,
  TrainState,
  Update,
)


class StepLog(NamedTuple):
  """The log of one update."""

  loss: Array  # []
  score: Array  # [], the problem's score summed over training examples, among the classes seen.
  total: Array  # [] int32
  finite: Array  # [] bool, whether all parameters are finite after it.


def loss_and_grads(loss_of: Any, params: Params) -> Any:
  """`jax.value_and_grad` with respect to what is trained: ((loss, aux), grads).

  Args:
    loss_of: `(params) -> (loss, aux)`.
    params: with their `Kept` leaves; grads have None in place of these.
  """
  active, kept = split_kept(params)
  return jax.value_and_grad(lambda part: loss_of(combine(part, kept)), has_aux=True)(active)


def updated(
  recipe: Recipe, params: Params, grads: Params, opt_state: Any, **about: Any
) -> tuple[Params, Any]:
  """The parameters and the optimizer's state after an update.

  Args:
    recipe: the optimizer.
    params: with their `Kept` leaves.
    grads: of what is trained.
    opt_state: of the recipe.
    **about: extra arguments of the optimizer: `progress` [], `last` [] bool, `steps` [], `weight`
      [].
  """
  active, kept = split_kept(params)
  updates, opt_state = recipe.tx.update(grads, opt_state, active, **about)
  return combine(optax.apply_updates(active, updates), kept), opt_state


def all_finite(tree: Any) -> Array:
  """[] bool, whether every number of a tree is finite."""
  return jax.tree.reduce(lambda ok, leaf: ok & jnp.isfinite(leaf).all(), tree, jnp.array(True))


def env_of(state: TrainState, frozen: Params) -> Env:
  """The read-only inputs of a method besides its own state."""
  return Env(frozen, state.task, state.step - state.task.start)


def with_stored(method: ContinualMethod, memory: Any, env: Env, batch: Batch) -> Batch:
  """A batch with stored examples filled into the rows that refer to them; see `Joined`."""
  if method.joined is None or batch.slot is None:
    return batch
  stored = batch.slot >= 0
  with calling(method, 'joined'):
    found = method.joined.read(memory, env, jnp.maximum(batch.slot, 0))
  new_x, new_y = pair(method, 'joined', found)
  rows = lambda array: stored.reshape(-1, *[1] * (array.ndim - 1))
  # Stored examples have no cached features or task ids, so no row may have them.
  x, y = raw(batch.x), batch.y
  x, y = jnp.where(rows(x), new_x, x), jnp.where(rows(y), new_y, y)
  return batch._replace(x=x, y=y, index=jnp.where(stored, -1, batch.index))


def train_step(
  method: ContinualMethod, recipe: Recipe, state: TrainState, frozen: Params, batch: Batch
) -> tuple[TrainState, StepLog]:
  """One update, as a pure function. Its randomness is a function of the step's number alone."""
  task, env = state.task, env_of(state, frozen)
  batch = with_stored(method, state.memory, env, batch)
  key = key_for(state, task, state.step)
  k_loss, k_observe = jax.random.split(key)
  k_project = jax.random.fold_in(key, 2)  # 0 and 1 are drawn by the split above.
  penalties = {k: t.penalty for k, t in method.transforms.items() if t.penalty is not None}

  def loss_of(params: Params) -> tuple[Array, Output]:
    with calling(method, 'loss'):
      loss, out = pair(method, 'loss', method.loss(params, state.memory, env, batch, k_loss))
    for name, penalty in penalties.items():
      loss += penalty(params[name])
    return check_loss(method, loss), check_output(method.name, out)

  (loss, out), grads = loss_and_grads(loss_of, state.params)
  if method.project is not None:
    with calling(method, 'project'):
      grads = method.project(grads, state.params, state.memory, env, batch, k_project)
  about = {
    'progress': env.progress,
    'last': env.step + 1 >= task.steps,
    'steps': task.steps,
    'weight': batch.valid.sum(),
  }
  params, opt_state = updated(recipe, state.params, grads, state.opt_state, **about)
  for name, transform in method.transforms.items():
    if transform.after is not None:
      params = {**params, name: transform.after(params[name], grads[name], env.progress)}
  memory = state.memory
  if method.observe is not None:
    update = Update(grads, state.params)
    with calling(method, 'observe'):
      found = method.observe(params, memory, env, batch, out, update, k_observe)
    params, memory = pair(method, 'observe', found)
  judge = method.capacity.problem.judge
  judged = judge(out.logits, batch.y, batch.valid, task.seen, task.classes)
  log = StepLog(loss, judged.score, judged.total, all_finite(params))
  after = state._replace(params=params, opt_state=opt_state, memory=memory, step=state.step + 1)
  return carried(method, 'observe', state, after), log


def fit_step(
  method: ContinualMethod,
  phase: Fit,
  number: int,
  state: TrainState,
  frozen: Params,
  batch: Batch | None,
  step: Array,
  steps: Array,
) -> tuple[TrainState, StepLog]:
  """One update of a phase of the method's own.

  Args:
    method: whose phase it is.
    phase: the fit.
    number: of the phase among those of the method.
    state: of the run.
    frozen: the backbone's weights.
    batch: of the task's data; None where the fit draws from memory.
    step: [] int32, updates of the phase so far in this task.
    steps: [] int32, those planned.
  """
  env = env_of(state, frozen)
  key = jax.random.fold_in(own_key(state, number), step)
  part = {name: state.params[name] for name in phase.trains}

  transforms = {name: each for name, each in method.transforms.items() if name in part}

  def loss_of(part: Params) -> tuple[Array, None]:
    with calling(method, phase.name):
      loss = phase.loss({**state.params, **part}, state.memory, env, batch, key)
    for name, transform in transforms.items():
      loss += 0.0 if transform.penalty is None else transform.penalty(part[name])
    return check_loss(method, loss, phase.name), None

  (loss, _), grads = loss_and_grads(loss_of, part)
  about = {
    'progress': step / steps,
    'last': step + 1 >= steps,
    'steps': steps,
    'weight': 1 if batch is None else batch.valid.sum(),
  }
  part, opt_state = updated(phase.recipe, part, grads, state.extra[phase.name], **about)
  for name, transform in transforms.items():
    if transform.after is not None:
      part = {**part, name: transform.after(part[name], grads[name], step / steps)}
  params = {**state.params, **part}
  none = jnp.zeros((), jnp.int32)
  log = StepLog(loss, none, none + 1, all_finite(params))
  extra = {**state.extra, phase.name: opt_state}
  return carried(method, phase.name, state, state._replace(params=params, extra=extra)), log
