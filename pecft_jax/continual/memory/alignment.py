"""Classifier alignment: phases that train a head again on draws from a Gaussian per class.

From SLCA (Zhang et al., 2023, arXiv:2303.05118); many methods end their tasks with it.
"""

import jax
import jax.numpy as jnp

from pecft_jax.arguments import above, at_least
from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.problems import cross_entropy
from pecft_jax.recipes import Recipe
from pecft_jax.typing import Array, Fit, Head, Once, Task


def alignment(
  head: Head,
  tasks: int,
  *,
  epochs: int,
  samples: int,
  recipe: Recipe,
  temperature: float | None = None,
  decay: float = 0.0,
  shrinkage: float = 1e-4,
  after: str = 'consolidate',
) -> tuple[Once, Fit]:
  """The phases `gaussians` and `align` of a method whose memory has `gaussians`, a `Gaussians`.

  The first makes roots of the scatters that the task gathered; the second, in each task but the
  first, trains `params['head']` on features that are drawn from classes seen, evenly. The mean of
  class c is scaled by 1 - decay + decay x (t_c + 1) / (t + 1), with t_c its first task.

  Args:
    head: whose state is `params['head']`.
    tasks: T
    epochs: each is `samples` draws per class seen, in batches of as many.
    samples: per class and epoch; also the batch size.
    recipe: of the head.
    temperature: of logits that are divided by `task_norm`; None leaves logits as they are.
    decay: how far the means of the oldest classes shrink towards zero.
    shrinkage: added to variances.
    after: the phase that these follow.

  Raises:
    ValueError: for sizes below 1, a temperature that is not positive, a negative decay or
      shrinkage.
  """
  at_least(1, epochs=epochs, samples=samples)
  above(0, temperature=temperature)
  at_least(0, decay=decay, shrinkage=shrinkage)

  def finish(params, memory, env, key):
    del key
    done = normals.finished(memory['gaussians'], env.task.classes, shrinkage)
    return params, {**memory, 'gaussians': done}

  def loss(params, memory, env, batch, key):
    del batch
    k_class, k_feature = jax.random.split(key)
    task = env.task
    even = jnp.where(task.seen, 0.0, -jnp.inf)
    y = jax.random.categorical(k_class, even, shape=(samples,))
    age = (task.home[y] + 1) / (task.index + 1)
    h = normals.draw(memory['gaussians'], y, k_feature, 1 - decay + decay * age)
    logits = head.logits(params['head'], h)
    if temperature is not None:
      logits = logits / task_norm(logits, task.home, task.index, tasks) / temperature
    return cross_entropy(logits, y, task.seen).mean()

  def steps(task: Task) -> int:
    return epochs * int(task.seen.sum())

  fit = Fit(
    'align',
    loss,
    after='gaussians',
    recipe=recipe,
    trains=('head',),
    steps=steps,
    when=lambda task: task > 0,
  )
  return Once('gaussians', finish, after=after), fit


def task_norm(logits: Array, home: Array, index: Array, tasks: int) -> Array:
  """The mean over tasks so far of the norm of each task's logits: [B, C] -> [B, 1].

  Args:
    logits: [B, C]
    home: [C] int32, the task of each class, -1 for those not seen.
    index: [] int32, the current task.
    tasks: T
  """
  member = jax.nn.one_hot(home, tasks)  # Zero rows for classes not seen.
  norms = jnp.sqrt(jnp.square(logits) @ member + 1e-12)
  there = jnp.arange(tasks) <= index
  return (norms * there).sum(-1, keepdims=True) / (index + 1)
