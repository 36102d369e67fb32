"""What a training step costs on given devices, from shapes alone: nothing is allocated."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import raw, with_given
from pecft_jax.devices.cut_heads import warn_of_cut_heads
from pecft_jax.devices.sharding import Layout, check_batches, check_rules, one_device
from pecft_jax.paths import tree_bytes, tree_size
from pecft_jax.plan.carried import checkpoint_bytes
from pecft_jax.plan.cost import flops, temporaries
from pecft_jax.plan.links import Sent, sent
from pecft_jax.plan.memory import Memory, gathered, held, stored_as
from pecft_jax.recipes import Recipe
from pecft_jax.train.experiment import Experiment, trained_as
from pecft_jax.train.lower import Lower, below_of_batch, lower_of
from pecft_jax.train.state import init_state
from pecft_jax.train.update import loss_and_grads, train_step
from pecft_jax.typing import (
  Backbone,
  Batch,
  Below,
  ContinualMethod,
  Env,
  Gather,
  Given,
  Params,
  TrainState,
)  # fmt: skip


class Plan(NamedTuple):
  """The estimates for one training step of a run.

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
    memory: bytes on each device.
    dtype: of the backbone's computation.
    step: FLOPs of one training step on each device.
    predict: FLOPs of one prediction, per example.
    traffic: the least bytes that a device moves to and from its memory in a step: weights are
      read in both passes, activations written and read once, and so is what is trained, with its
      gradients and the state of the optimizer.
    sent: bytes that a device sends in a step.
    carried: bytes that are carried from task to task, at the method's capacity.
    checkpoint: the most bytes that a checkpoint takes.
    lower: the frozen blocks that are computed once per example, which the step and the prediction
      leave out; None where a plan is of no experiment.
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
  dtype: str
  step: float
  predict: float
  traffic: int
  sent: Sent
  carried: int
  checkpoint: int
  lower: Lower | None = None


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
  lower: Lower | None = None,
) -> Plan:
  """Plans a training step.

  The step is that of one device's part of the batch. Axes of the mesh other than `data` are assumed
  to split its FLOPs evenly, and no activations: an upper bound.

  Args:
    method: that trains.
    backbone: its frozen model.
    frozen: its weights, or their shapes.
    recipe: the optimizer.
    batch_size: examples per step, over all devices.
    layout: mesh and rules, of devices that need not exist; one device by default.
    frozen_dtype: that the backbone's weights are stored in; as given by default.
    cache_queries: as in `Training`.
    lower: what is computed once per example, and so in no step.

  Raises:
    ValueError: if the mesh does not divide the batch, or rules do not fit.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import finetune
  >>> from pecft_jax.recipes import adam
  >>> from pecft_jax.typing import Capacity
  >>> model = architecture('vit_glyphs16', depth=1)
  >>> frozen = jax.eval_shape(model.init, jax.random.key(0))
  >>> method = finetune(model, Capacity(tasks=5, classes=10))
  >>> planned = plan(method, model, frozen, adam(1e-3), batch_size=32)
  >>> planned.memory.optimizer > 2 * planned.memory.trained - 100
  True
  """
  layout = one_device() if layout is None else layout
  check_batches(layout, {'batch_size': batch_size})
  frozen = stored_as(frozen, frozen_dtype)
  state = abstract_state(method, recipe, frozen)
  check_rules(layout, state, frozen)
  warn_of_cut_heads(layout, backbone.sites, frozen)
  mesh = dict(layout.mesh.shape)
  local = batch_size // mesh['data']
  batch = abstract_batch(method, frozen, local, cache_queries)
  asked = batch.x
  if lower is not None and lower.kept:
    given = with_given(batch.x, below=_below(backbone, lower.block, frozen, raw(batch.x)))
    batch = batch._replace(x=given if lower.training else batch.x)
    asked = given if lower.tests else asked
  trains = method.trains(0)
  step = training_step(method, recipe)
  predict = lambda state, frozen, x: method.predict(
    state.params, state.memory, Env(frozen, state.task), x
  )
  turns = method.capacity.tasks
  layers = math.prod(mesh.values()) // mesh['data']
  lines = held(layout, state, frozen)
  memory = Memory(
    **lines,
    batch=tree_bytes(batch),
    gradients=lines['trained'] if trains else 0,
    gathered=gathered(layout, frozen),
    activations=gradient_bytes(method, state, frozen, batch)
    if trains
    else temporaries(step, state, frozen, batch),
  )
  sending = sent(layout, state, frozen, backbone.sites, local)
  return Plan(
    backbone=backbone.name,
    method=method.name,
    mesh=mesh,
    batch=batch_size,
    unit=backbone.inputs.unit,
    units=backbone.inputs.units,
    trains=trains,
    backbone_parameters=tree_size(frozen),
    trained_parameters=tree_size(state.params),
    memory=memory,
    dtype=_computed_in(backbone),
    step=flops(step, state, frozen, batch, turns=turns) / layers,
    predict=flops(predict, state, frozen, asked, turns=turns) / local,
    traffic=_traffic(memory, sending, layers),
    sent=sending,
    carried=tree_bytes((state.params, state.memory)),
    checkpoint=checkpoint_bytes(state),
    lower=lower,
  )


def plan_experiment(
  experiment: Experiment, layout: Layout | None = None, frozen_dtype: Any | None = None
) -> Plan:
  """Plans the training step of an experiment.

  Args:
    experiment: whose training step is planned; its weights may be shapes.
    layout: as in `plan`.
    frozen_dtype: as in `plan`.

  Raises:
    ValueError: as `plan`.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import simplecil
  >>> from pecft_jax.recipes import adam
  >>> from pecft_jax.train import Training
  >>> from pecft_jax.typing import Pretrained
  >>> model = architecture('vit_glyphs16', depth=1)
  >>> frozen = jax.eval_shape(model.init, jax.random.key(0))
  >>> source = data.arrays('shades', np.zeros((4, 16, 16, 1), np.uint8), labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> method = simplecil(model, scenario.capacity)
  >>> training = Training(adam(1e-3), epochs=1, batch_size=32)
  >>> planned = plan_experiment(Experiment(Pretrained(model, frozen), scenario, method, training))
  >>> planned.trains, planned.batch
  (False, 32)
  """
  experiment = trained_as(experiment, experiment.method)
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
    lower=lower_of(experiment, experiment.method),
  )


def _below(backbone: Backbone, block: int, frozen: Params, x: Any) -> Below:
  """Shapes of the tokens that a block gets for a batch."""
  run = lambda frozen, x: below_of_batch(backbone, block, frozen, x)
  return Below(jax.eval_shape(run, frozen, x), block)


def _computed_in(backbone: Backbone) -> str:
  """The dtype of the first linear layer's inputs."""
  linear = next(spec for spec in backbone.sites if spec.site.kind == 'linear')
  return str(linear.args[0].dtype)


def _traffic(memory: Memory, sending: Sent, layers: int) -> int:
  updated = memory.trained + memory.gradients + memory.optimizer
  passes = 2 if memory.gradients else 1
  # As many bytes of weights are received as are sent.
  weights = passes * memory.frozen + sending.weights
  return int(weights + 2 * memory.activations / layers + 2 * updated)


def abstract_state(method: ContinualMethod, recipe: Recipe, frozen: Params) -> TrainState:
  """The shapes of a run's state."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(lambda key, frozen: init_state(method, recipe, key, frozen), key, frozen)


def abstract_batch(
  method: ContinualMethod, frozen: Params, size: int, cache_queries: bool = False
) -> Batch:
  """The shapes of a batch, with cached queries where they are wanted."""

  def rows(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct((size, *shape), dtype)

  x: Any = jax.ShapeDtypeStruct((size, *method.inputs.shape), method.inputs.dtype)
  if cache_queries and method.query is not None:
    x = Given(x, jax.eval_shape(method.query, frozen, x))
  target = method.capacity.problem.target
  slot: Any = None if method.joined is None else rows(jnp.int32)
  y: Any = rows(target.dtype, *target.shape)
  return Batch(x, y, rows(jnp.bool_), rows(jnp.int32), slot)


def training_step(
  method: ContinualMethod, recipe: Recipe
) -> Callable[[TrainState, Params, Batch], Any]:
  """The planned step: one update, or one batch of a method's pass where it never trains."""
  if method.trains(0):
    return lambda state, frozen, batch: train_step(method, recipe, state, frozen, batch)
  own = [phase.hook for phase in method.phases if isinstance(phase, Gather)]
  gather = next(filter(None, [method.consolidate, method.prepare, *own]), None)
  if gather is None:
    return lambda state, frozen, batch: state
  return lambda state, frozen, batch: gather(
    state.params, state.memory, Env(frozen, state.task), batch
  )


def gradient_bytes(method: ContinualMethod, state: TrainState, frozen: Params, batch: Batch) -> int:
  """Temporaries of the gradients of a batch, without the gradients."""

  def gradients(state: TrainState, frozen: Params, batch: Batch) -> Any:
    env = Env(frozen, state.task)
    key = jax.random.wrap_key_data(state.key)
    loss_of = lambda params: method.loss(params, state.memory, env, batch, key)
    return loss_and_grads(loss_of, state.params)[1]

  return temporaries(gradients, state, frozen, batch)
