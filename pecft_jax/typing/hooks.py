"""The hooks of a method: what each is called with, and what it returns.

Axis letters: B batch, T tokens (tasks when it leads a bank), D width, C classes.
"""

from typing import Any, Protocol

from pecft_jax.typing.arrays import Array, Inputs, Key, Params
from pecft_jax.typing.tasks import Batch, Env, Output, Update


class ForwardHook(Protocol):
  """The model in training mode, without the task's loss."""

  def __call__(self, params: Params, memory: Any, env: Env, x: Inputs, key: Any, /) -> Output:
    """Consumes the key; None means deterministic."""
    ...


class LossHook(Protocol):
  """The loss of an update, and the outputs that it was computed from."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch, key: Any, /
  ) -> tuple[Array, Output]:
    """Returns (loss [], output of the batch). Consumes the key."""
    ...


class PredictHook(Protocol):
  """Answers at test time; a `Parts` where some of their work stays the same from task to task."""

  def __call__(self, params: Params, memory: Any, env: Env, x: Inputs, /) -> Array:
    """Returns logits [B, C] with -inf for unseen classes, or the problem's answers."""
    ...


class StateHook(Protocol):
  """Changes params and memory between passes."""

  def __call__(self, params: Params, memory: Any, env: Env, key: Key, /) -> tuple[Params, Any]:
    """Returns (params, memory) of the same names, shapes and dtypes. Consumes the key."""
    ...


class EndHook(Protocol):
  """After the last pass over a task."""

  def __call__(self, params: Params, memory: Any, env: Env, /) -> tuple[Params, Any]:
    """Returns (params, memory) of the same names, shapes and dtypes."""
    ...


class GatherHook(Protocol):
  """One batch of a pass over the task's data, as they are and in order."""

  def __call__(self, params: Params, memory: Any, env: Env, batch: Batch, /) -> Any:
    """Returns memory; rows that are not valid must not count."""
    ...


class ProjectHook(Protocol):
  """Before each update."""

  def __call__(
    self, grads: Params, params: Params, memory: Any, env: Env, batch: Batch, key: Key, /
  ) -> Params:
    """Returns the gradients that the optimizer sees. Consumes the key."""
    ...


class ObserveHook(Protocol):
  """After each update."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch, out: Output, update: Update,
    key: Key, /,
  ) -> tuple[Params, Any]:  # fmt: skip
    """Returns what the next step starts from. Consumes the key."""
    ...


class FitLoss(Protocol):
  """The loss of a `Fit`."""

  def __call__(
    self, params: Params, memory: Any, env: Env, batch: Batch | None, key: Key, /
  ) -> Array:
    """Returns the loss []; `batch` is None where the fit draws from memory. Consumes the key."""
    ...
