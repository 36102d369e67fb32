"""Records that the trainer and a method exchange.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from typing import NamedTuple

import jax.numpy as jnp

from pecft_jax.paths import record_words, tree_words
from pecft_jax.problems import Problem, classification
from pecft_jax.typing.arrays import Array, Delta, Inputs, Params
from pecft_jax.typing.backbones import Below
from pecft_jax.typing.heads import LinearHead
from pecft_jax.typing.transforms import PeftTransform


class Task(NamedTuple):
  """The current task, as arrays, so that a new task recompiles nothing."""

  index: Array  # [] int32, counted from 0.
  classes: Array  # [C] bool, the classes of this task.
  seen: Array  # [C] bool, those of this task and all before it.
  past: Array  # [C] bool, those of the tasks before it.
  home: Array  # [C] int32, the first task of each class; -1 for classes not seen yet.
  start: Array  # [] int32, training steps taken before this task.
  steps: Array  # [] int32, training steps planned for this task (at least 1).

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)


class Env(NamedTuple):
  """Read-only inputs of a method besides its own state."""

  frozen: Params  # The backbone's weights; never differentiated, always an argument.
  task: Task
  step: Array | int = 0  # [] int32, updates of this task so far.
  # [C] bool, the only classes that the training softmax of the batch may hold; None: no limit.
  # A wrapper sets it for the method inside, and it does not concern examples that are replayed.
  among: Array | None = None

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)

  @property
  def progress(self) -> Array:
    """Share of the task's updates that are done: [] in [0, 1]."""
    return jnp.asarray(self.step / self.task.steps)


class Given(NamedTuple):
  """Inputs, with further values per example."""

  x: Array  # uint8 [B, H, W, C] or int32 [B, T]
  query: Array | None = None  # [B, D], the feature of the frozen backbone.
  task: Array | None = None  # [B] int32, the task of each example; -1 where it is not known.
  below: Below | None = None  # What the lowest blocks of the frozen backbone make of x.

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)


class Batch(NamedTuple):
  """One batch of constant shape; rows beyond the data are marked invalid."""

  x: Inputs  # uint8 [B, H, W, C] or int32 [B, T], or a `Given` around it.
  y: Array  # [B, ...], as the problem's target: of classification, the position of the class.
  valid: Array  # [B] bool
  index: Array  # [B] int32, row of the example in its split.
  # [B] int32, number of the stored example in a row, -1 for the task's own data; see `Joined`.
  slot: Array | None = None

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)


class Update(NamedTuple):
  """One update, as `observe` gets it; fields that are not read cost nothing."""

  grads: Params  # After `project`; None in place of what is `Kept`.
  before: Params  # The parameters that they were taken at.

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)


class Output(NamedTuple):
  """Outputs of a method's forward pass in training."""

  logits: Array  # [B, C], or as the problem's answers.
  aux_loss: Array  # [B] the method's own regulariser per example, already weighted.
  features: Array  # [B, D], what the head read.

  def __repr__(self) -> str:
    """Shapes, without values."""
    return record_words(self)


class Adapted(NamedTuple):
  """An adapted backbone's transform, delta and classifier, for use without the method."""

  peft: PeftTransform
  delta: Delta
  head: LinearHead | None  # None where features are classified otherwise.

  def __repr__(self) -> str:
    """The transform, and shapes without values."""
    return f'Adapted({self.peft}, delta={tree_words(self.delta)}, head={tree_words(self.head)})'


class Capacity(NamedTuple):
  """Numbers of tasks and classes of a sequence: the static sizes of all continual state."""

  tasks: int
  classes: int
  problem: Problem = classification
