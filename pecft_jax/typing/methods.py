"""A continual-learning method, and the state of its run."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pecft_jax.paths import record_words
from pecft_jax.recipes import Recipe
from pecft_jax.typing.arrays import Array, Key, Params
from pecft_jax.typing.backbones import Backbone, InputSpec
from pecft_jax.typing.heads import Head
from pecft_jax.typing.hooks import (
  EndHook,
  ForwardHook,
  GatherHook,
  LossHook,
  ObserveHook,
  PredictHook,
  ProjectHook,
  StateHook,
)
from pecft_jax.typing.plans import Joined, Phase
from pecft_jax.typing.tasks import Adapted, Capacity, Env, Task
from pecft_jax.typing.transforms import PeftTransform


class ContinualMethod(NamedTuple):
  """A continual-learning method as pure functions over (params, memory, env).

  `params` is exactly what the optimizer sees now, except what is `Kept`;
  `memory` is every other array that is carried: past slots, buffers,
  statistics. No leaf is in both. All shapes are constant over the whole
  sequence. Keys are consumed; `None` means deterministic. Hooks that are None
  are skipped and cost nothing.

  A task has the phases begin, prepare, train, consolidate and end, with the
  method's own `phases` between them; see `pecft_jax.continual.plan`.

  Attributes:
    name: for reports.
    backbone: the frozen model.
    capacity: the static sizes of its state.
    init: `(key, frozen) -> (params, memory)`.
    forward: the model in training mode.
    loss: what an update minimises.
    predict: answers at test time; as `Parts` where evaluations may keep some of the work.
    begin_task: called once when a task begins.
    prepare: one pass over the new data before training.
    project: changes gradients before each update.
    observe: called after each update.
    consolidate: one pass over the task's data after training.
    end_task: called once when a task ends.
    phases: further phases, in order.
    transforms: the entries of `params` that are deltas, with the transform of each:
      the trainer calls the transforms' `after`, `penalty` and `calibrate`.
    head: what classifies `Output.features`, with its state at `params['head']`; wrappers that
      train heads again use it. None where there is no such head.
    query: `(frozen, x) -> [B, D]`, features that may be computed once per example and
      passed to `forward` as a `Given`; None where there is nothing to cache.
    trains: whether task `t` has a training phase, as `(t) -> bool` (SimpleCIL:
      never; RanPAC: the first task only).
    cumulative: whether the method trains on the data of all tasks so far
      (joint training, the upper bound); continual methods do not.
    epochs: of training, in the place of the run's; None for the run's.
    recipe: of training, in the place of the run's; None for the run's.
    joined: stored examples that each epoch visits beside the task's own; None: none.
    passes: forward passes of the backbone per prediction, as `(tasks) -> float`.
    adapted: `(params, memory, env) -> Adapted`, after `end_task`, outside of
      jit; None where no single delta does what `predict` needs.
    renewed: the top-level entries of `params` that are reset at each
      task; wrappers that tie parameters to old values leave them out.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  name: str
  backbone: Backbone
  capacity: Capacity
  init: Callable[[Key, Params], tuple[Params, Any]]
  forward: ForwardHook
  loss: LossHook
  predict: PredictHook
  begin_task: StateHook | None = None
  prepare: GatherHook | None = None
  project: ProjectHook | None = None
  observe: ObserveHook | None = None
  consolidate: GatherHook | None = None
  end_task: EndHook | None = None
  phases: tuple[Phase, ...] = ()
  transforms: Mapping[str, PeftTransform] = {}
  head: Head | None = None
  query: Callable[[Params, Array], Array] | None = None
  trains: Callable[[int], bool] = lambda task: True
  cumulative: bool = False
  epochs: int | None = None
  recipe: Recipe | None = None
  joined: Joined | None = None
  passes: Callable[[int], float] = lambda tasks: 1.0
  adapted: Callable[[Params, Any, Env], Adapted] | None = None
  renewed: tuple[str, ...] = ()
  settings: Mapping[str, Any] | None = None

  def __repr__(self) -> str:
    """The facts in a line, without hooks and settings."""
    tasks, classes, problem = self.capacity
    return (
      f'ContinualMethod({self.name} on {self.backbone.name}, tasks={tasks}, classes={classes}, '
      f'problem={problem.name})'
    )

  @property
  def inputs(self) -> InputSpec:
    """The input specification of the backbone."""
    return self.backbone.inputs


class TrainState(NamedTuple):
  """All state of a run that changes: one checkpointable pytree."""

  params: Params
  memory: Any
  opt_state: Any
  task: Task
  step: Array  # [] int32, updates over the whole sequence.
  key: Key
  extra: Any = {}  # By phase: optimizer states of fits, statistics of calibrations.

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)
