"""Phases of a method's own, and stored examples that join the epochs of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pecft_jax.recipes import Recipe
from pecft_jax.typing.arrays import Array
from pecft_jax.typing.hooks import FitLoss, GatherHook, StateHook
from pecft_jax.typing.tasks import Env, Task


class Once(NamedTuple):
  """A phase of one call.

  Attributes:
    name: of the phase in checkpoints, logs and messages; its own in a plan.
    hook: what is called.
    after: the phase that it follows: 'begin', 'prepare', 'train', 'consolidate',
      or another of the method's own.
    when: whether task `t` has it, as `(t) -> bool`.
  """

  name: str
  hook: StateHook
  after: str
  when: Callable[[int], bool] = lambda task: True


class Gather(NamedTuple):
  """A phase that is one pass over the task's training data; fields as those of `Once`."""

  name: str
  hook: GatherHook
  after: str
  when: Callable[[int], bool] = lambda task: True


class Fit(NamedTuple):
  """A phase of updates, on the task's data or on what memory holds.

  Attributes:
    name: as in `Once`.
    loss: `(params, memory, env, batch, key) -> []`.
    after: as in `Once`.
    recipe: its optimizer, whose state is reset at each task.
    trains: the top-level entries of `params` that it updates.
    steps: updates in a task on what memory holds, as `(task) -> int`, of a `Task`
      of numpy arrays; None for `epochs` passes over the task's data.
    epochs: passes over the task's data, where `steps` is None.
    when: as in `Once`.
  """

  name: str
  loss: FitLoss
  after: str
  recipe: Recipe
  trains: tuple[str, ...]
  steps: Callable[[Task], int] | None = None
  epochs: int = 1
  when: Callable[[int], bool] = lambda task: True


Phase = Once | Gather | Fit


class Joined(NamedTuple):
  """Stored examples that training visits in each epoch beside the task's own.

  Attributes:
    count: `(task) -> int`, how many, of a `Task` of numpy arrays.
    read: `(memory, env, slot) -> (x, y)`, those of numbers 0..count - 1. The trainer
      puts them into their rows of each batch before any hook sees it; these rows
      have the index -1, and no view: augmentation is of the task's own data.
  """

  count: Callable[[Task], int]
  read: Callable[[Any, Env, Array], tuple[Array, Array]]
