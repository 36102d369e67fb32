"""How the learning rate changes over a task, as a factor of its peak."""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from pecft_jax.settings import recorded

Array = jax.Array


class Schedule(Protocol):
  """How the learning rate changes over a task."""

  def __call__(self, progress: Array, /) -> Array:
    """Returns the factor of the peak rate [].

    Args:
      progress: [] in [0, 1], share of the task's updates that are done; traced.
    """
    ...


def constant(progress: Array) -> Array:
  """The full rate throughout.

  Args:
    progress: [] in [0, 1], share of the task.

  Returns:
    [], factor of the learning rate.

  >>> import jax.numpy as jnp
  >>> float(constant(jnp.asarray(0.5)))
  1.0
  """
  return jnp.ones_like(progress)


def cosine(progress: Array) -> Array:
  """From 1 to 0 along half a cosine.

  Args:
    progress: [] in [0, 1], share of the task.

  Returns:
    [], factor of the learning rate.

  >>> import jax.numpy as jnp
  >>> round(float(cosine(jnp.asarray(0.5))), 3)
  0.5
  """
  return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def quarter_cosine(progress: Array) -> Array:
  """From 1 to nearly 0 along a quarter of a cosine, as in the code of InfLoRA and CODA-Prompt.

  Args:
    progress: [] in [0, 1], share of the task.

  Returns:
    The factor of the rate [].

  >>> import jax.numpy as jnp
  >>> round(float(quarter_cosine(jnp.asarray(1.0))), 4)
  0.0157
  """
  return jnp.cos(0.495 * jnp.pi * progress)


@recorded
def milestones(at: Sequence[float], factor: float = 0.1) -> Schedule:
  """Multiplies the rate by `factor` at each of some points of a task.

  Args:
    at: progress in (0, 1): epoch 18 of 20 is 0.9.
    factor: of the rate.

  Raises:
    ValueError: for points outside (0, 1).

  >>> import jax.numpy as jnp
  >>> round(float(milestones((0.7, 0.9), 0.2)(jnp.asarray(0.9))), 3)
  0.04
  """
  if not all(0 < each < 1 for each in at):
    raise ValueError(f'expected points in (0, 1), got {list(at)}')

  def schedule(progress):
    # Less than one update of any task, more than the rounding error of progress.
    passed = (progress > jnp.asarray(at, jnp.float32) - 1e-6).sum()
    return jnp.float32(factor) ** passed

  return schedule


@recorded
def warmup(share: float, then: Schedule) -> Schedule:
  """Rises linearly over the first `share` of a task, then runs another schedule over the rest.

  Args:
    share: of the task, in (0, 1).
    then: schedule over the rest of the task.

  Returns:
    A schedule, `(progress []) -> factor of the rate []`.

  Raises:
    ValueError: for a share outside (0, 1).

  >>> import jax.numpy as jnp
  >>> round(float(warmup(0.1, constant)(jnp.asarray(0.05))), 3)
  0.5
  """
  if not 0 < share < 1:
    raise ValueError(f'share must be in (0, 1), got {share}')

  def schedule(progress):
    rest = then(jnp.clip((progress - share) / (1 - share), 0, 1))
    return jnp.where(progress < share, progress / share, rest)

  return schedule
