"""A trained method with its backbone: predictions and features.

Axis letters: N examples, B batch, C classes, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.data import Split, eval_batches
from pecft_jax.data.source import RandomAccess
from pecft_jax.devices.sharding import (
  Layout,
  batched,
  check_batches,
  one_device,
  replicated,
  traced_on,
  tree_shardings,
)
from pecft_jax.train.batches import on_devices
from pecft_jax.train.experiment import check_inputs
from pecft_jax.typing import (
  Adapted,
  Array,
  ContinualMethod,
  Env,
  Given,
  Params,
  Pretrained,
  Task,
)


class Learned(NamedTuple):
  """The state of a method after a task: all that its predictions read besides the backbone."""

  params: Params
  memory: Any
  task: Task
  step: Array  # [] int32, updates over the whole sequence.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Learner:
  """A method after some of its tasks, ready to predict.

  `load_run` and `load_bundle` make one. Programs are compiled at the first call with each batch
  size.

  Attributes:
    model: the frozen backbone with its weights.
    method: that was trained.
    state: its parameters and memory.
    class_names: of all classes of its sequence [C], by output.
    tasks: how many it has learned.
    facts: what was recorded of the run, as JSON.
    layout: of the devices that it computes on.
  """

  model: Pretrained
  method: ContinualMethod
  state: Learned
  class_names: tuple[str, ...]
  tasks: int
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  layout: Layout = dataclasses.field(default_factory=one_device)

  def __repr__(self) -> str:
    """The facts in a line, without arrays."""
    return (
      f'Learner({self.method.name} on {self.model.backbone.name}, tasks={self.tasks}, '
      f'classes={int(self.seen.sum())} of {len(self.class_names)})'
    )

  @property
  def seen(self) -> np.ndarray:
    """The classes learned so far: bool [C]."""
    return np.asarray(self.state.task.seen)

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes learned so far, by output."""
    return tuple(name for name, seen in zip(self.class_names, self.seen, strict=True) if seen)

  @property
  def adapted(self) -> Adapted:
    """The delta and the classifier, for other libraries.

    Raises:
      ValueError: if the method predicts with more than one delta.
    """
    if self.method.adapted is None:
      raise ValueError(
        f'{self.method.name} has no single delta that does what its predictions need: expected a '
        'method with `adapted`, such as finetune, or a wrapper around one'
      )
    return self.method.adapted(self.state.params, self.state.memory, self._env(self.model.params))

  def predict(
    self, inputs: RandomAccess, *, tasks: Sequence[int] | None = None, batch_size: int = 64
  ) -> np.ndarray:
    """The answers of the method.

    Args:
      inputs: as the backbone reads them, images uint8 [N, H, W, C] or token ids int32 [N, T]: an
        array, or what reads rows on demand.
      tasks: [N], the task of each example, from 0; for methods that read it.
      batch_size: B, a multiple of the devices that share a batch.

    Returns:
      float32 [N, C] logits, -inf for classes not learned yet; or [N, ...], the answers of another
      problem.

    Raises:
      ValueError: for inputs of another shape or dtype, none at all, or an answer that is NaN.
    """
    return np.concatenate(list(self.batches(inputs, tasks=tasks, batch_size=batch_size)))

  def batches(
    self, inputs: RandomAccess, *, tasks: Sequence[int] | None = None, batch_size: int = 64
  ) -> Iterator[np.ndarray]:
    """The answers of `predict`, batch by batch: more inputs than fit into memory.

    Args:
      inputs: as in `predict`.
      tasks: as in `predict`.
      batch_size: as in `predict`.

    Yields:
      float32 [B, C], in order; fewer rows at the end.

    Raises:
      ValueError: as `predict`.
    """
    rows = None if tasks is None else np.asarray(tasks, np.int32)
    if rows is not None and rows.shape != (len(inputs),):
      raise ValueError(f'expected {len(inputs)} tasks, one per example, got {list(rows.shape)}')
    done = 0
    for answers in self._batches(self._predict, inputs, rows, batch_size):
      wrong = np.isnan(answers) | np.isposinf(answers)
      if wrong.any():
        example = done + int(np.argwhere(wrong)[0][0])
        raise ValueError(f'the answer of {self.method.name} to example {example} is not finite')
      done += len(answers)
      yield answers

  def probabilities(
    self, inputs: RandomAccess, *, tasks: Sequence[int] | None = None, batch_size: int = 64
  ) -> np.ndarray:
    """Softmax over the classes learned so far: float32 [N, C], 0 for all others.

    Args:
      inputs: as in `predict`.
      tasks: as in `predict`.
      batch_size: as in `predict`.

    Raises:
      ValueError: as `predict`; and for a method whose answers are not classes.
    """
    self.check_classes()
    return softmax(self.predict(inputs, tasks=tasks, batch_size=batch_size))

  def features(self, inputs: RandomAccess, *, batch_size: int = 64) -> np.ndarray:
    """The features that the method's head reads, without dropout: float32 [N, D].

    With a delta per task, those of the last task.

    Args:
      inputs: as in `predict`.
      batch_size: as in `predict`.

    Raises:
      ValueError: as `predict`.
    """
    return np.concatenate(list(self._batches(self._features, inputs, None, batch_size)))

  def check_classes(self) -> None:
    """Raises ValueError for a method whose answers are not classes."""
    problem = self.method.capacity.problem
    if not problem.classes:
      raise ValueError(f'{self.method.name} answers {problem.name}, which has no classes')

  def _env(self, frozen: Params) -> Env:
    return Env(frozen, self.state.task, self.state.step - self.state.task.start)

  @functools.cached_property
  def _predict(self) -> Callable[..., Array]:
    return self._compiled(lambda state, env, x: self.method.predict(state[0], state[1], env, x))

  @functools.cached_property
  def _features(self) -> Callable[..., Array]:
    def features(state: Learned, env: Env, x: Any) -> Array:
      return self.method.forward(state.params, state.memory, env, x, None).features

    return self._compiled(features)

  def _compiled(self, fn: Callable[..., Array]) -> Callable[..., Array]:
    def run(state: Learned, frozen: Params, x: Any) -> Array:
      env = Env(frozen, state.task, state.step - state.task.start)
      return fn(state, env, x).astype(jnp.float32)

    where = tree_shardings(self.layout, self.state), tree_shardings(self.layout, self.model.params)
    return jax.jit(
      traced_on(self.layout, run),
      in_shardings=(*where, batched(self.layout)),
      out_shardings=replicated(self.layout),
    )

  def _batches(
    self, fn: Callable[..., Array], inputs: RandomAccess, tasks: np.ndarray | None, size: int
  ) -> Iterator[np.ndarray]:
    """The results of a compiled function for all inputs, batch by batch."""
    if not len(inputs):
      raise ValueError('expected at least one example, got none')
    if size < 1:
      raise ValueError(f'expected a batch_size of at least 1, got {size}')
    check_batches(self.layout, {'batch_size': size})
    split = Split(inputs, np.arange(len(inputs)), np.zeros(len(inputs), np.int32))
    check_inputs(self.model.backbone, 'what was given', split)
    for batch in eval_batches(split, batch_size=size):
      x: Any = batch.x
      if tasks is not None:
        task: Any = tasks[np.asarray(batch.index)]
        x = Given(x, task=task)
      x = on_devices(batch._replace(x=x), batched(self.layout)).x
      rows = fn(self.state, self.model.params, x)
      yield np.asarray(rows)[np.asarray(batch.valid)]


def softmax(logits: np.ndarray) -> np.ndarray:
  """Probabilities of logits [..., C], in float64 and returned in float32; 0 for those of -inf.

  >>> softmax(np.array([[0, 0, -np.inf]])).tolist()
  [[0.5, 0.5, 0.0]]
  """
  logits = np.asarray(logits, np.float64)
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return (exp / exp.sum(-1, keepdims=True)).astype(np.float32)
