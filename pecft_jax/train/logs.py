"""Results of updates and evaluations: fetched from the devices, checked, written."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.data import steps_for
from pecft_jax.recipes import Recipe
from pecft_jax.train.context import Loop, NonFiniteLoss
from pecft_jax.train.schedule import progress_of
from pecft_jax.workdir.position import Findings, Position


def settle(position: Position) -> None:
  """Fetches all pending results from the devices, and checks them; called before every save.

  Raises:
    NonFiniteLoss: if the loss of a step, or a parameter after it, was not finite.
  """
  fetch(position)
  if position.sums is not None:
    *sums, hits = jax.device_get(position.sums)
    seeds = len(position.seeds)
    rows = np.stack([np.reshape(each, (seeds, -1)) for each in sums], -1)  # [S, J, 3]
    if (bad := np.argwhere(rows[..., 2] < 0)).size:
      raise no_number(position, int(bad[0, 1]))
    for i, found in enumerate(position.seeds):
      if hits is not None:
        _add_hits(found, np.reshape(hits, (seeds, *hits.shape[-2:]))[i])
      found.counts = rows[i].tolist()
  position.sums = None


def _add_hits(found: Findings, hits: np.ndarray) -> None:
  """Adds right answers by class [2, C] to those of the evaluation under way."""
  found.hits = (hits + np.asarray(found.hits or 0, hits.dtype)).tolist()


def no_number(position: Position, j: int) -> NonFiniteLoss:
  """The error where an answer to a test set is NaN."""
  return NonFiniteLoss(f'an answer to test set {j} is not a number, after task {position.task}')


def fetch(position: Position) -> None:
  """Fetches the results of updates so far, and checks them.

  Raises:
    NonFiniteLoss: as in `settle`.
  """
  done = position.batch - len(position.logs)
  for step, log in enumerate(jax.device_get(position.logs), done + 1):
    columns = zip(*(np.ravel(values) for values in log), strict=True)
    for i, (found, (loss, score, total, finite)) in enumerate(
      zip(position.seeds, columns, strict=True)
    ):
      what = 'the task' if position.phase == 'train' else position.phase
      where = f'task {position.task}, step {step} of {what}'
      if len(position.seeds) > 1:
        where += f', of seed number {i}'
      if not math.isfinite(loss):
        raise NonFiniteLoss(f'the loss is {float(loss)} at {where}')
      if not finite:
        raise NonFiniteLoss(f'the parameters are not finite after {where}')
      found.losses.append([float(loss), score.item(), int(total)])
  position.logs = []


def _rates(recipe: Recipe, progress: float) -> dict[str, Any]:
  """The learning rate, and those of groups by pattern where there are some."""
  rate = float(recipe.rate(jnp.float32(progress)))
  if not recipe.factors:
    return {'learning_rate': rate}
  groups = {pattern: factor * rate for pattern, factor in recipe.factors}
  return {'learning_rate': rate, 'learning_rates': groups}


def write_training_rows(loop: Loop, position: Position, examples: int) -> None:
  """A row of the log for each seed, on the updates since the last one.

  Args:
    loop: the run.
    position: after these updates, which were fetched.
    examples: that an epoch of the task visits.
  """
  training, t = loop.experiment.training, position.task
  progress = progress_of(loop.experiment, loop.method, t, position.batch - 1)
  means = []
  for found, record in zip(position.seeds, loop.records, strict=True):
    loss, correct, count = np.sum(found.losses, axis=0)
    means.append(float(loss) / len(found.losses))
    row = {
      'kind': 'train',
      'task': position.task,
      'epoch': min(training.epochs, steps_for(position.batch * training.batch_size, examples, 1)),
      'step': position.batch,
      'loss': means[-1],
      'accuracy': float(correct / count),
      **_rates(training.recipe, progress),
      'seconds': round(sum(position.seconds), 3),
    }
    found.losses = []
    record.write(row)
    found.rows = record.rows
  loop.tell(position, sum(means) / len(means), True)


def write_fit_rows(loop: Loop, position: Position, step: Any, total: int) -> None:
  """The same for a fit of the method's own, of `total` updates."""
  means = []
  for found, record in zip(position.seeds, loop.records, strict=True):
    means.append(sum(row[0] for row in found.losses) / len(found.losses))
    row = {
      'kind': step.name,
      'task': position.task,
      'step': position.batch,
      'loss': means[-1],
      **_rates(step.recipe, (position.batch - 1) / total),
      'seconds': round(sum(position.seconds), 3),
    }
    found.losses = []
    record.write(row)
    found.rows = record.rows
  loop.tell(position, sum(means) / len(means), True)
