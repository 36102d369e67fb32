"""The jitted functions of a run; those of a learner that is read from one are its own.

Each is compiled once for a whole sequence: a new task changes values, never
shapes. Frozen weights are always an argument, so they are never constants of
a program, and never differentiated.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pecft_jax.continual.plan import Calibrating, plan_of
from pecft_jax.devices.cut_heads import warn_of_cut_heads
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
from pecft_jax.problems import Judged
from pecft_jax.recipes import Recipe
from pecft_jax.train import phases
from pecft_jax.train.state import init_state
from pecft_jax.train.update import StepLog, fit_step, train_step
from pecft_jax.typing import (
  Array,
  ContinualMethod,
  Fit,
  Gather,
  GatherHook,
  Key,
  Once,
  Params,
  Parts,
  TrainState,
)


class PartSteps(NamedTuple):
  """Compiled functions of a method whose `predict` is `Parts`; none consumes the state.

  Attributes:
    look: `(state, frozen) -> (fingerprints uint32 [S, 4], used [])`, of what the slots' parts read.
    part: `(state, frozen, batch, slot) -> pytree of [B, ...]`
    combine: `Steps.predict` with one argument more: a tuple of the parts of all S slots.
    answer: `Steps.answer` likewise, or None.
    sharding: of the parts.
    slots: S
  """

  look: Callable[..., tuple[Array, Array]]
  part: Callable[..., Any]
  combine: Callable[..., Judged]
  answer: Callable[..., phases.Answers] | None
  sharding: Any
  slots: int


class Steps(NamedTuple):
  """Compiled functions; those that take a state consume it, except `predict`.

  With several runs side by side, state, training batches, logs and counts have a leading
  axis S, and `init` takes S keys; all else is shared. Other batches have that axis, too, where
  each run has data of its own.

  Attributes:
    init: `(key, frozen) -> state`
    begin: `(state, frozen, task) -> state`
    enter: `(state, task) -> state`, the next part of a stream without boundaries.
    prepare: `(state, frozen, batch) -> state`, or None where the method has no such pass.
    train: `(state, frozen, batch) -> (state, StepLog)`
    consolidate: `(state, frozen, batch) -> state`, or None.
    end: `(state, frozen) -> state`
    predict: `(state, frozen, batch, places, classes, counted, sums) -> sums`, where `classes`
      [C] are those of the batch's own task.
    answer: `(state, frozen, batch) -> Answers`, in the place of `predict` where the problem is
      judged on the host; else None.
    parts: the same in two steps, where the method's answers have parts; else None.
    query: `(frozen, x) -> [B, D]`, or None.
    own: functions of the method's own phases, by name: as `end` (once), `prepare` (gather),
      or, of fits, `(state, frozen, [batch,] step, steps) -> (state, StepLog)`.
    state_shardings: of the state.
    frozen_shardings: of the frozen weights.
    batch_sharding: of every array of a batch that is shared.
    train_batch_sharding: of every array of a training batch, and of one that is not shared.
    counts_sharding: of counts: replicated on every device.
    score_dtype: of the scores that the problem's judge adds up.
    hits_shape: of its right answers by class, [2, C]; None where answers are no classes.
    seed_axes: 1 where there is a leading axis for runs side by side, else 0.
  """

  init: Callable[..., TrainState]
  begin: Callable[..., TrainState]
  enter: Callable[..., TrainState]
  prepare: Callable[..., TrainState] | None
  train: Callable[..., tuple[TrainState, StepLog]]
  consolidate: Callable[..., TrainState] | None
  end: Callable[..., TrainState]
  predict: Callable[..., Judged]
  answer: Callable[..., phases.Answers] | None
  parts: PartSteps | None
  query: Callable[..., Array] | None
  own: Mapping[str, Callable[..., Any]]
  state_shardings: Any
  frozen_shardings: Any
  batch_sharding: Any
  train_batch_sharding: Any
  counts_sharding: Any
  score_dtype: Any
  hits_shape: tuple[int, ...] | None
  seed_axes: int


def compile_steps(
  method: ContinualMethod,
  recipe: Recipe,
  layout: Layout,
  frozen: Params,
  *,
  stacked: bool = False,
  own_data: bool = False,
  restart: bool = True,
) -> Steps:
  """Jits the functions of a method for a layout of devices.

  Args:
    method: any.
    recipe: the optimizer.
    layout: mesh and sharding rules.
    frozen: the backbone's weights, or their shapes.
    stacked: whether the functions are those of several runs at once, on a
      leading axis; it is sharded over the mesh's axis `seed`, if it has one.
    own_data: whether each of them has data of its own, so that all batches have that axis.
    restart: whether each task starts with a fresh optimizer.

  Raises:
    ValueError: if a rule of the layout does not fit or matches nothing, or for
      phases that cannot be ordered.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import simplecil
  >>> from pecft_jax.devices.sharding import one_device
  >>> from pecft_jax.recipes import adam
  >>> from pecft_jax.typing import Capacity
  >>> model = architecture('vit_glyphs16', depth=1)
  >>> frozen = jax.eval_shape(model.init, jax.random.key(0))
  >>> method = simplecil(model, Capacity(tasks=5, classes=10))
  >>> steps = compile_steps(method, adam(1e-3), one_device(), frozen)
  >>> steps.prepare is None, jax.eval_shape(steps.init, jax.random.key(0), frozen).step.shape
  (True, ())
  """
  plan, shared = plan_of(method), phases.Run(method, recipe, restart)

  def init(key: Key, frozen: Params) -> TrainState:
    return init_state(method, recipe, key, frozen)

  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), frozen)
  state = jax.eval_shape(init, key, frozen)
  check_rules(layout, state, frozen)
  warn_of_cut_heads(layout, method.backbone.sites, frozen)
  state_s, frozen_s = tree_shardings(layout, state), tree_shardings(layout, frozen)
  batch_s, one = batched(layout), replicated(layout)
  train_batch_s = batch_s
  if stacked:
    state_s = jax.tree.map(stacked_sharding, state_s)
    train_batch_s = stacked_sharding(batch_s)
  # Of batches besides those of training: their sharding, and their axis for runs.
  data_s, data = (train_batch_s, 0) if own_data else (batch_s, None)

  def jit(fn, inputs, outputs, axes, donate=True):
    fn = traced_on(layout, fn)
    if stacked:
      fn = jax.vmap(fn, in_axes=axes, spmd_axis_name=seed_axis(layout))
    return jax.jit(
      fn, in_shardings=inputs, out_shardings=outputs, donate_argnums=(0,) if donate else ()
    )

  def gathering(hook: GatherHook | None, name: str) -> Any:
    if hook is None:
      return None
    run = functools.partial(phases.gather, method, hook, name)
    return jit(run, (state_s, frozen_s, data_s), state_s, (0, None, data))

  def own(step: Any, number: int) -> Any:
    """The compiled function of a phase of the method's own."""
    fit = functools.partial(fit_step, method, step, number)
    match step:
      case Once():
        run = functools.partial(phases.once, shared, step, number)
      case Gather():
        return gathering(step.hook, step.name)
      case Fit(steps=None):
        inputs = (state_s, frozen_s, train_batch_s, one, one)
        return jit(fit, inputs, (state_s, one), (0, None, 0, None, None))
      case Fit():
        on_memory = lambda state, frozen, at, of: fit(state, frozen, None, at, of)
        inputs = (state_s, frozen_s, one, one)
        return jit(on_memory, inputs, (state_s, one), (0, None, None, None))
      case Calibrating():
        run = functools.partial(phases.calibrate, method, step, number)
        return jit(run, (state_s, frozen_s, data_s), state_s, (0, None, data))
      case _:
        run = functools.partial(phases.calibrated, shared, step)
    return jit(run, (state_s, frozen_s), state_s, (0, None))

  query = None
  if method.query is not None:
    # Replicated: a shuffled batch may hold any example.
    query = jax.jit(method.query, in_shardings=(frozen_s, batch_s), out_shardings=one)
  inputs = (state_s, frozen_s, data_s, batch_s, one, one, one)
  begin, end = (functools.partial(fn, shared) for fn in (phases.begin, phases.end))
  predict = functools.partial(phases.predict, method)
  train = functools.partial(train_step, method, recipe)
  answer, host = None, method.capacity.problem.host is not None
  if host:
    run = functools.partial(phases.answer, method)
    answer = jit(run, (state_s, frozen_s, data_s), one, (0, None, data), donate=False)

  return Steps(
    init=jit(init, (one, frozen_s), state_s, (0, None), donate=False),
    begin=jit(begin, (state_s, frozen_s, one), state_s, (0, None, None)),
    enter=jit(phases.enter, (state_s, one), state_s, (0, None)),
    prepare=gathering(method.prepare, 'prepare'),
    train=jit(train, (state_s, frozen_s, train_batch_s), (state_s, one), (0, None, 0)),
    consolidate=gathering(method.consolidate, 'consolidate'),
    end=jit(end, (state_s, frozen_s), state_s, (0, None)),
    predict=jit(predict, inputs, one, (0, None, data, None, None, None, 0), donate=False),
    answer=answer,
    parts=_part_steps(method, jit, inputs, train_batch_s, data),
    query=query,
    own={
      step.name: own(step, number)
      for number, step in enumerate(step for step in plan if not isinstance(step, str))
    },
    state_shardings=state_s,
    frozen_shardings=frozen_s,
    batch_sharding=batch_s,
    train_batch_sharding=train_batch_s,
    counts_sharding=one,
    score_dtype=method.capacity.problem.score_dtype,
    hits_shape=phases.hits_shape(method),
    seed_axes=int(stacked),
  )


def _part_steps(
  method: ContinualMethod,
  jit: Callable[..., Any],
  inputs: tuple[Any, ...],
  rows: Any,
  data: int | None,
) -> PartSteps | None:
  """The functions of answers that have parts; None for others.

  Args:
    method: any.
    jit: as in `compile_steps`.
    inputs: shardings of the arguments of `Steps.predict`.
    rows: sharding of parts: that of a batch, with an axis for runs where the state has one.
    data: the axis for runs of a batch, if it has one.
  """
  if not isinstance(method.predict, Parts):
    return None
  state, frozen, batch, *_, one = inputs
  asking = functools.partial(jit, donate=False)
  of = lambda fn: functools.partial(fn, method)
  answer = None
  if method.capacity.problem.host is not None:
    answer = asking(of(phases.answer_from), (state, frozen, batch, rows), one, (0, None, data, 0))
  return PartSteps(
    look=asking(of(phases.look), (state, frozen), one, (0, None)),
    part=asking(of(phases.part), (state, frozen, batch, one), rows, (0, None, data, None)),
    combine=asking(
      of(phases.predict_from), (*inputs, rows), one, (0, None, data, *[None] * 3, 0, 0)
    ),
    answer=answer,
    sharding=rows,
    slots=method.predict.slots,
  )


JITTED = (
  'train', 'begin', 'enter', 'prepare', 'consolidate', 'end', 'predict', 'answer', 'query',
)  # fmt: skip
_JITTED_OF_PARTS = 'look', 'part', 'combine', 'answer'


def compilations(steps: Steps, before: Mapping[str, int]) -> dict[str, int]:
  """The number of compilations of each jitted function; the maximum over processes.

  Args:
    steps: of this process.
    before: the result in earlier processes of the run.

  Returns:
    Counts by name; functions that never ran are left out.
  """
  here = {**{name: getattr(steps, name) for name in JITTED}, **steps.own}
  if steps.parts is not None:
    here |= {f'parts.{name}': getattr(steps.parts, name) for name in _JITTED_OF_PARTS}
  counts = {
    name: max(0 if step is None else step._cache_size(), before.get(name, 0))
    for name, step in here.items()
  }
  return {name: count for name, count in counts.items() if count}
