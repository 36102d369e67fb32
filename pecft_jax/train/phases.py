"""The phases of a task besides training, as pure functions of the train state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import mean_of_valid, model
from pecft_jax.continual.plan import Calibrated, Calibrating
from pecft_jax.paths import named_leaves
from pecft_jax.peft.halves import split_kept
from pecft_jax.peft.leaves import put_named, weights_named
from pecft_jax.problems import Judged
from pecft_jax.recipes import Recipe
from pecft_jax.train.fingerprints import fingerprint
from pecft_jax.train.guard import calling, carried, pair
from pecft_jax.train.state import fresh_extra, key_for, no_statistics, own_key
from pecft_jax.train.update import env_of
from pecft_jax.typing import (
  Array,
  Batch,
  ContinualMethod,
  Env,
  GatherHook,
  Key,
  Once,
  Params,
  Parts,
  Task,
  TrainState,
)


class Answers(NamedTuple):
  """A batch as a judge on the host needs it, whole on every device."""

  answers: Array  # [B, ...], as `HostJudge.answers` gives them.
  targets: Array  # [B, ...]
  valid: Array  # [B] bool
  no_number: Array  # [] bool, whether an answer to a valid example is NaN.


# The total of a test set for which an answer is no number.
NO_NUMBER = -1


class Run(NamedTuple):
  """What the phases share: method, recipe, and whether each task has a fresh optimizer."""

  method: ContinualMethod
  recipe: Recipe
  restart: bool = True


def begin(run: Run, state: TrainState, frozen: Params, task: Task) -> TrainState:
  """The next task, with everything that is reset."""
  method, task = run.method, task._replace(start=state.step)
  params, memory = state.params, state.memory
  if method.begin_task is not None:
    key = key_for(state, task, 2**32 - 1)  # A number that no training step uses.
    env = Env(frozen, task, state.step - task.start)
    with calling(method, 'begin_task'):
      params, memory = pair(method, 'begin_task', method.begin_task(params, memory, env, key))
  after = state._replace(params=params, memory=memory, task=task)
  return _renewed(run, carried(method, 'begin_task', state, after))


def enter(state: TrainState, task: Task) -> TrainState:
  """The next part of a stream without boundaries: no hook is called, nothing is reset."""
  return state._replace(task=task._replace(start=state.task.start))


def gather(
  method: ContinualMethod,
  hook: GatherHook,
  name: str,
  state: TrainState,
  frozen: Params,
  batch: Batch,
) -> TrainState:
  """One batch of a pass over the task's data."""
  with calling(method, name):
    memory = hook(state.params, state.memory, env_of(state, frozen), batch)
  return carried(method, name, state, state._replace(memory=memory))


def once(run: Run, phase: Once, number: int, state: TrainState, frozen: Params) -> TrainState:
  """A phase of one call; `number` is its own among those of the method."""
  method, key = run.method, own_key(state, number)
  with calling(method, phase.name):
    found = phase.hook(state.params, state.memory, env_of(state, frozen), key)
  params, memory = pair(method, phase.name, found)
  after = carried(method, phase.name, state, state._replace(params=params, memory=memory))
  return _optimised(run, after)


def end(run: Run, state: TrainState, frozen: Params) -> TrainState:
  """The end of a task."""
  method, params, memory = run.method, state.params, state.memory
  if method.end_task is not None:
    with calling(method, 'end_task'):
      found = method.end_task(params, memory, env_of(state, frozen))
    params, memory = pair(method, 'end_task', found)
  after = carried(method, 'end_task', state, state._replace(params=params, memory=memory))
  # The next task starts with a fresh optimizer; zeros take no room in checkpoints that are kept.
  return _renewed(run, after)


def predict(
  method: ContinualMethod,
  state: TrainState,
  frozen: Params,
  batch: Batch,
  places: Array,
  classes: Array,
  counted: Array,
  sums: Judged,
) -> Judged:
  """Adds up what the problem judges of a batch, for each of J test sets.

  The total of a test set becomes `NO_NUMBER`, and stays so, where an answer to one of its examples
  is NaN or infinite.

  Args:
    method: any.
    state: that is asked.
    frozen: the backbone's weights.
    batch: of examples of any of the test sets.
    places: [B] int32, the test set of each example.
    classes: [J, C] bool, those of each test set's task.
    counted: [J] bool, whether hits are added up on a test set.
    sums: so far, [J] each; hits [2, C] where there are some.
  """
  with calling(method, 'predict'):
    answers = method.predict(state.params, state.memory, env_of(state, frozen), batch.x)
  return _judged(method, answers, batch, places, classes, counted, sums)


def predict_from(
  method: ContinualMethod,
  state: TrainState,
  frozen: Params,
  batch: Batch,
  places: Array,
  classes: Array,
  counted: Array,
  sums: Judged,
  parts: tuple[Any, ...],
) -> Judged:
  """`predict` of a method with `Parts`, from those of each slot; arguments as there."""
  answers = _combined(method, state, frozen, batch, parts)
  return _judged(method, answers, batch, places, classes, counted, sums)


def answer_from(
  method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch, parts: tuple[Any, ...]
) -> Answers:
  """`answer` of a method with `Parts`, from those of each slot."""
  return _for_host(method, _combined(method, state, frozen, batch, parts), batch)


def part(
  method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch, slot: Array
) -> Any:
  """The part of one slot: a pytree of [B, ...].

  Raises:
    ValueError: for a part that does not have a row for each example.
  """
  parts, env = parts_of(method), env_of(state, frozen)
  with calling(method, 'predict.part'):
    weights = parts.weights(state.params, state.memory, env, slot)
    found = parts.part(frozen, weights, batch.x)
  rows = len(batch.valid)
  for name, leaf in named_leaves(found):
    if leaf.shape[:1] != (rows,):
      raise ValueError(
        f'{method.name}: predict.part must give a row for each of {rows} examples, got '
        f'{name or "an array"} of shape {list(leaf.shape)}'
      )
  return found


def look(method: ContinualMethod, state: TrainState, frozen: Params) -> tuple[Array, Array]:
  """Fingerprints of what the part of each slot reads, uint32 [S, 4], and the slots used, []."""
  parts, env = parts_of(method), env_of(state, frozen)

  def one(slot: Array) -> Array:
    with calling(method, 'predict.weights'):
      return fingerprint(parts.weights(state.params, state.memory, env, slot))

  with calling(method, 'predict.used'):
    used = parts.count(env)
  return jax.lax.map(one, jnp.arange(parts.slots)), used


def parts_of(method: ContinualMethod) -> Parts:
  """The `predict` of a method that has parts."""
  assert isinstance(method.predict, Parts)
  return method.predict


def _combined(
  method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch, parts: tuple[Any, ...]
) -> Array:
  """The answers to a batch, from the parts of all S slots."""
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
  with calling(method, 'predict.combine'):
    combine = parts_of(method).combine
    return combine(state.params, state.memory, env_of(state, frozen), stacked, batch.x)


def _judged(
  method: ContinualMethod,
  answers: Array,
  batch: Batch,
  places: Array,
  classes: Array,
  counted: Array,
  sums: Judged,
) -> Judged:
  """Adds up what the problem judges of the answers to a batch."""
  problem, every = method.capacity.problem, jnp.ones_like(classes[0])

  def judged(answer: Array, y: Array, valid: Array, own: Array) -> Judged:
    # `predict` gives -inf for classes not seen, so all may be judged.
    return problem.judge(answer[None], y[None], valid[None], every, own)

  each = jax.vmap(judged)(answers, batch.y, batch.valid, classes[places])
  its = places[:, None] == jnp.arange(len(classes))  # [B, J]
  of_set = lambda rows: jnp.where(its, rows[:, None], 0).sum(0, dtype=rows.dtype)
  score, aware, total = (a + of_set(b) for a, b in zip(sums[:3], each[:3], strict=True))
  hits = None
  if sums.hits is not None and each.hits is not None:
    counts = each.hits * counted[places][:, None, None]
    hits = sums.hits + counts.sum(0, dtype=sums.hits.dtype)
  no_number = (its & _not_numbers(answers, batch)[:, None]).any(0) | (sums.total < 0)
  return Judged(score, aware, jnp.where(no_number, NO_NUMBER, total), hits)


def hits_shape(method: ContinualMethod) -> tuple[int, ...] | None:
  """The shape of the hits that the problem's judge gives, [2, C]; None where it gives none."""
  problem, (_, classes, _) = method.capacity.problem, method.capacity
  if not problem.classes:
    return None
  one = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
  y, valid, among = one((1,), jnp.int32), one((1,), bool), one((classes,), bool)
  answers = one((1, classes), jnp.float32)
  hits = jax.eval_shape(problem.judge, answers, y, valid, among, among).hits
  return None if hits is None else hits.shape


def answer(method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch) -> Answers:
  """The arrays that are brought to the host where the problem is judged there."""
  with calling(method, 'predict'):
    answers = method.predict(state.params, state.memory, env_of(state, frozen), batch.x)
  return _for_host(method, answers, batch)


def _for_host(method: ContinualMethod, answers: Array, batch: Batch) -> Answers:
  host = method.capacity.problem.host
  assert host is not None
  bad = _not_numbers(answers, batch).any()
  return Answers(host.answers(answers), batch.y, batch.valid, bad)


def _not_numbers(answers: Array, batch: Batch) -> Array:
  """Whether the answer to each valid example is NaN or infinite: [B] bool."""
  # Comparisons with NaN are false, so that it would be counted as some class; -inf is an answer
  # that is not asked for.
  bad = jnp.isnan(answers) | jnp.isposinf(answers)
  return bad.reshape(len(answers), -1).any(1) & batch.valid


def not_finite(tree: Any) -> dict[str, tuple[Array, Array]]:
  """Whether each leaf holds NaN, and whether it holds infinities, by name: [] bool each."""
  return {
    name: (jnp.isnan(leaf).any(), jnp.isinf(leaf).any())
    for name, leaf in named_leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  }


def calibrate(
  method: ContinualMethod,
  step: Calibrating,
  number: int,
  state: TrainState,
  frozen: Params,
  batch: Batch,
) -> TrainState:
  """Statistics of one batch more for the calibration of a delta.

  Args:
    method: that owns it.
    step: the pass.
    number: of the phase among those of the method.
    state: of the run.
    frozen: the backbone's weights.
    batch: of the task's data.
  """
  transform, delta = method.transforms[step.entry], state.params[step.entry]
  calibration = transform.calibrate
  assert calibration is not None

  def add(statistics: Any, part: Batch) -> Any:
    taps = {}
    if calibration.watch is not None:
      run = model(method.backbone, transform).run
      taps = run(frozen, delta, part.x, watch=calibration.watch, rows=None).taps
    if calibration.gradients is not None:
      names = calibration.gradients(delta)
      found = frozen_gradients(method, names, state, frozen, part, own_key(state, number))
      taps = {**taps, **{f'gradient:{name}': leaf for name, leaf in found.items()}}
    return calibration.add(statistics, taps, part.valid)

  statistics = state.extra[step.name]
  if calibration.each:
    ones = jax.tree.map(lambda rows: rows[:, None], batch)
    statistics = jax.lax.scan(lambda s, one: (add(s, one), None), statistics, ones)[0]
  else:
    statistics = add(statistics, batch)
  after = state._replace(extra={**state.extra, step.name: statistics})
  return carried(method, step.name, state, after)


def frozen_gradients(
  method: ContinualMethod,
  names: Sequence[str],
  state: TrainState,
  frozen: Params,
  batch: Batch,
  key: Key,
) -> dict[str, Array]:
  """Float32 gradients of the mean loss with respect to frozen weights; see `Calibration`."""
  sites, problem = method.backbone.sites, method.capacity.problem
  params = with_awake_head(method, state.params, key)

  def loss_of(weights: dict[str, Array]) -> Array:
    env = env_of(state, put_named(weights, frozen, sites))
    with calling(method, 'forward'):
      logits = method.forward(params, state.memory, env, batch.x, None).logits
    losses = problem.losses(logits, batch.y, state.task.classes)
    return mean_of_valid(losses, batch.valid)

  weights = weights_named(names, frozen, sites)
  return jax.grad(loss_of)({name: leaf.astype(jnp.float32) for name, leaf in weights.items()})


def with_awake_head(method: ContinualMethod, params: Params, key: Key) -> Params:
  """Parameters with a head whose logits depend on the features, as a head of zeros' do not."""
  if method.head is None or method.head.awake is None:
    return params
  return {**params, 'head': method.head.awake(key, params['head'])}


def calibrated(run: Run, step: Calibrated, state: TrainState, frozen: Params) -> TrainState:
  """The delta that the statistics give, with an optimizer that starts from it."""
  del frozen
  calibration = run.method.transforms[step.entry].calibrate
  assert calibration is not None
  statistics = state.extra[f'calibrate {step.entry}']
  delta = calibration.finish(state.params[step.entry], statistics)
  # The sums are not needed any more.
  start = no_statistics(run.method, calibration, delta)
  extra = {**state.extra, f'calibrate {step.entry}': start}
  after = state._replace(params={**state.params, step.entry: delta}, extra=extra)
  return _optimised(run, carried(run.method, step.name, state, after))


def _renewed(run: Run, state: TrainState) -> TrainState:
  """With a fresh optimizer, and phases of the method's own at their start."""
  return _optimised(run, state._replace(extra=fresh_extra(run.method, state.params)))


def _optimised(run: Run, state: TrainState) -> TrainState:
  """With an optimizer that starts from the parameters as they are."""
  if not run.restart:
    return state
  return state._replace(opt_state=run.recipe.tx.init(split_kept(state.params)[0]))
