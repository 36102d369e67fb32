"""Heads of tasks, each with an output for whatever is not of its task; as in ACL.

Zhang et al., 2023, arXiv:2304.09042. A head has C + T outputs, for all classes and all tasks. The
head of task t is read at the classes of the task and at output C + t, which stands for the others.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pecft_jax.continual.memory.herding import Exemplars
from pecft_jax.continual.prompts.specialists import own_first
from pecft_jax.continual.prompts.tasks import task_or
from pecft_jax.typing import Array, Env, Inputs, Key

Losses = Callable[[Array, Array, Array], Array]  # As of a problem.


def new_losses(losses: Losses, logits: Array, y: Array, env: Env) -> Array:
  """The cross-entropy of the current task's head [B], of logits [B, C + T] and labels [B]."""
  classes = env.task.classes.shape[0]
  own = env.task.classes if env.among is None else env.task.classes & env.among
  other = jnp.arange(logits.shape[1] - classes) == env.task.index
  right = jnp.where(jnp.asarray(env.task.classes)[y], y, classes + env.task.index)
  return losses(logits, right, jnp.concatenate([own, other]))


def all_losses(losses: Losses, logits: Array, owner: Array, y: Array, env: Env) -> Array:
  """The sum of the cross-entropies of the heads of all tasks so far [B].

  Args:
    losses: `(logits [B, C + T], y [B], allowed [C + T]) -> [B]`
    logits: [T, B, C + T], of each head.
    owner: [C] int32, the task of each class.
    y: [B] int32, labels; where a class is of another task, the last output is right.
    env: with the current task.
  """
  tasks, classes = logits.shape[0], owner.shape[0]
  task = jnp.arange(tasks)
  right = jnp.where(owner[y] == task[:, None], y, classes + task[:, None])
  each = jax.vmap(losses)(logits, right, _outputs(owner, tasks))
  return jnp.where(task[:, None] <= env.task.index, each, 0).sum(0)


def answers(logits: Array, owner: Array, x: Inputs, env: Env) -> Array:
  """The log-probabilities of classes [B, C]; those of the chosen task stand before all others.

  It is the task whose head gives the smallest probability to the others, unless it is given.

  Args:
    logits: [T, B, C + T], of each head.
    owner: [C] int32, the task of each class; -1 for classes not seen yet.
    x: inputs.
    env: with the current task.
  """
  tasks, classes = logits.shape[0], owner.shape[0]
  allowed = _outputs(owner, tasks)
  shares = jax.nn.log_softmax(jnp.where(allowed[:, None], logits.astype(jnp.float32), -1e9))
  task = jnp.arange(tasks)
  others = shares[task, :, classes + task]  # [T, B]
  others = jnp.where(task[:, None] <= env.task.index, others, jnp.inf)
  chosen = task_or(x, env, others.argmin(0))
  return own_first(shares[..., :classes], chosen, allowed[:, :classes], owner)


def drawn(buffer: Exemplars, many: int, key: Key) -> tuple[Array, Array, Array]:
  """Distinct stored examples, at random: images, labels, and valid [B]. Consumes the key."""
  # The first rows of a random order of what is stored; empty slots come last.
  chance = jnp.where(buffer.label >= 0, jax.random.uniform(key, buffer.label.shape), 2)
  rows = jnp.argsort(chance)[:many]
  y = buffer.label[rows]
  return buffer.items['x'][rows], jnp.maximum(y, 0), y >= 0


def _outputs(owner: Array, tasks: int) -> Array:
  """The outputs that the head of each task is read at: [T, C + T] bool."""
  own = owner[None] == jnp.arange(tasks)[:, None]
  return jnp.concatenate([own, jnp.eye(tasks, dtype=bool)], 1)
