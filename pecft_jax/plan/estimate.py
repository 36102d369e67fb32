"""What a training step costs on given devices, from shapes alone: nothing is allocated."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.devices.sharding import Layout, check_batches, check_rules, one_device
from pecft_jax.paths import tree_bytes, tree_size
from pecft_jax.plan import fusion
from pecft_jax.plan.carried import checkpoint_bytes
from pecft_jax.plan.links import Sent, sent
from pecft_jax.plan.memory import Memory, gathered, held, stored_as
from pecft_jax.plan.operations import Flops, flops
from pecft_jax.plan.program import Op, Program, program_of, pruned
from pecft_jax.train.experiment import Experiment
from pecft_jax.train.optimizer import Recipe
from pecft_jax.train.state import init_state
from pecft_jax.train.step import train_step
from pecft_jax.typing import Backbone, Batch, Cached, ContinualMethod, Env, Params, TrainState


class Plan(NamedTuple):
  """What is known before a run.

  Attributes:
    backbone: its name.
    method: its name.
    mesh: sizes by axis.
    batch: examples per step, over all devices.
    unit: what is counted: images or tokens.
    units: per example.
    trains: whether the method trains at all; if not, the step is one batch of its pass over the
      data (`consolidate`).
    backbone_parameters: number of frozen weights.
    trained_parameters: number of scalars that the optimizer updates.
    memory: on each device.
    step: FLOPs of one training step on each device.
    predict: FLOPs of one prediction, per example.
    traffic: bytes that a device reads from and writes to its memory in a step.
    sent: bytes that a device sends in a step.
    carried: bytes that are carried from task to task, at the method's capacity.
    checkpoint: the most bytes that a checkpoint takes.
  """

  backbone: str
  method: str
  mesh: Mapping[str, int]
  batch: int
  unit: str
  units: int
  trains: bool
  backbone_parameters: int
  trained_parameters: int
  memory: Memory
  step: Flops
  predict: Flops
  traffic: int
  sent: Sent
  carried: int
  checkpoint: int


def plan(
  method: ContinualMethod,
  backbone: Backbone,
  frozen: Params,
  recipe: Recipe,
  *,
  batch_size: int,
  layout: Layout | None = None,
  frozen_dtype: Any | None = None,
  cache_queries: bool = False,
) -> Plan:
  """Plans a training step.

  The program of the step is that of one device's part of the batch. Axes of the mesh other than
  `data` are taken to split its matrix products evenly; activations are counted as if they split
  none of them, which is too much.

  Args:
    method: that trains.
    backbone: that it stands on.
    frozen: its weights, or their shapes.
    recipe: the optimizer.
    batch_size: examples per step, over all devices.
    layout: mesh and rules, of devices that need not be there; one device by default.
    frozen_dtype: that the backbone's weights are stored in; as given by default.
    cache_queries: as in `Training`.

  Raises:
    ValueError: if the mesh does not divide the batch, or rules do not fit.
  """
  layout = one_device() if layout is None else layout
  check_batches(layout, {'batch_size': batch_size})
  frozen = stored_as(frozen, frozen_dtype)
  state = abstract_state(method, recipe, frozen)
  check_rules(layout, state, frozen)
  mesh = dict(layout.mesh.shape)
  local = batch_size // mesh['data']
  batch = abstract_batch(method, frozen, local, cache_queries)
  trains = method.trains(0)
  if trains:
    whole, gradients = step_programs(method, recipe, state, frozen, batch)
  else:
    whole = gradients = _pass_program(method, state, frozen, batch)
  predict = program_of(
    lambda state, frozen, x: method.predict(
      state.params, state.memory, Env(frozen, state.task), x
    ),
    state, frozen, batch.x,
  )  # fmt: skip
  trips = method.capacity.tasks
  layers = math.prod(mesh.values()) // mesh['data']
  lines = held(layout, state, frozen)
  held_at_once = lambda kernels: fusion.peak(gradients, kernels, gradients.outputs)
  apart = held_at_once(fusion.apart)
  memory = Memory(
    **lines,
    batch=tree_bytes(batch),
    gradients=lines['trained'] if trains else 0,
    gathered=gathered(layout, frozen),
    activations=apart,
    # What is computed late keeps what it is computed from, which no compiler must.
    activations_fused=min(apart, held_at_once(fusion.fused)),
  )
  tokens = backbone.inputs.pad is not None
  return Plan(
    backbone=backbone.name,
    method=method.name,
    mesh=mesh,
    batch=batch_size,
    unit='tokens' if tokens else 'images',
    units=backbone.inputs.shape[0] if tokens else 1,
    trains=trains,
    backbone_parameters=tree_size(frozen),
    trained_parameters=tree_size(state.params),
    memory=memory,
    step=flops(whole, trips).times(1 / layers),
    predict=flops(predict, trips).times(1 / local),
    traffic=fusion.traffic(whole, trips) // layers,
    sent=sent(layout, state, frozen, backbone.sites, local),
    carried=tree_bytes((state.params, state.memory)),
    checkpoint=checkpoint_bytes(state),
  )


def plan_experiment(
  experiment: Experiment, layout: Layout | None = None, frozen_dtype: Any | None = None
) -> Plan:
  """Plans the training step of an experiment; arguments and errors as of `plan`."""
  training = experiment.training
  return plan(
    experiment.method,
    experiment.backbone,
    experiment.frozen,
    training.recipe,
    batch_size=training.batch_size,
    layout=layout,
    frozen_dtype=frozen_dtype,
    cache_queries=training.cache_queries,
  )


def abstract_state(method: ContinualMethod, recipe: Recipe, frozen: Params) -> TrainState:
  """The shapes of a run's state."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(lambda key, frozen: init_state(method, recipe, key, frozen), key, frozen)


def abstract_batch(
  method: ContinualMethod, frozen: Params, size: int, cache_queries: bool = False
) -> Batch:
  """The shapes of a batch, with cached queries where they are wanted."""

  def rows(dtype: Any) -> Any:
    return jax.ShapeDtypeStruct((size,), dtype)

  x: Any = jax.ShapeDtypeStruct((size, *method.inputs.shape), method.inputs.dtype)
  if cache_queries and method.query is not None:
    x = Cached(x, jax.eval_shape(method.query, frozen, x))
  return Batch(x, rows(jnp.int32), rows(jnp.bool_), rows(jnp.int32))


def step_programs(
  method: ContinualMethod, recipe: Recipe, state: TrainState, frozen: Params, batch: Batch
) -> tuple[Program, Program]:
  """The program of a training step, and the part of it that makes the gradients."""
  count = len(jax.tree.leaves(state.params))

  def marked(grads: Params, memory: Any, env: Env) -> Params:
    return jax.lax.optimization_barrier(method.project(grads, memory, env))

  step = lambda state, frozen, batch: train_step(
    method._replace(project=marked), recipe, state, frozen, batch
  )
  program = program_of(step, state, frozen, batch)
  marks = [
    i
    for i, op in enumerate(program.ops)
    if op.name == 'optimization_barrier' and len(op.inputs) == count
  ]
  mark = program.ops[marks[-1]]
  before = Program(program.inputs, program.ops[: marks[-1]], mark.inputs)
  return _without(program, marks[-1]), pruned(before)


def _without(program: Program, place: int) -> Program:
  """A program without an operation that changes nothing."""
  mark = program.ops[place]
  same = dict(zip(mark.outputs, mark.inputs, strict=True))

  def renamed(op: Op) -> Op:
    return op._replace(inputs=tuple(same.get(value, value) for value in op.inputs))

  ops = (*program.ops[:place], *map(renamed, program.ops[place + 1 :]))
  return Program(program.inputs, ops, tuple(same.get(v, v) for v in program.outputs))


def _pass_program(
  method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch
) -> Program:
  return program_of(
    lambda state, frozen, batch: method.consolidate(
      state.params, state.memory, Env(frozen, state.task), batch
    ),
    state, frozen, batch,
  )  # fmt: skip
