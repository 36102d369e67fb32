"""results.json: what a run found, in the terms of the public contract."""

import resource
import sys
from typing import Any

import numpy as np

from pecft_jax.metrics import summarise
from pecft_jax.paths import tree_bytes, tree_size
from pecft_jax.train.experiment import Experiment, describe
from pecft_jax.typing import ContinualMethod, TrainState
from pecft_jax.workdir.position import Position


def results(
  experiment: Experiment,
  method: ContinualMethod,
  state: TrainState,
  position: Position,
  *,
  digest: str | None,
  seed: int = 0,
) -> dict[str, Any]:
  """The record of a run, finished or not: a function of its checkpoint, so that it can be remade.

  Args:
    experiment: that is run.
    method: the method, or one of the references.
    state: at that position, of one seed, or its shapes.
    position: where the run is.
    digest: sha256 of the final state; None while running.
    seed: number of the seed among those of the run.
  """
  scenario = experiment.scenario
  sizes = [len(task.test.rows) for task in scenario.tasks]
  found = position.seeds[seed]
  primary = found.aware if scenario.kind == 'task' else found.accuracy
  done = len(found.accuracy)
  return {
    'name': scenario.name,
    'status': 'running' if digest is None else 'done',
    'scenario': scenario.kind,
    'method': method.name,
    **experiment.labels,
    'tasks': [task.name for task in scenario.tasks],
    'class_names': list(scenario.class_names),
    'test_sizes': sizes,
    'axis': ['time', 'task'],
    'accuracy_matrix': primary,
    'task_aware_accuracy_matrix': found.aware,
    'metrics': metrics(primary, sizes) if done else {},
    'efficiency': {
      'trainable_parameters': tree_size(state.params),
      'carried_state_bytes': tree_bytes((state.params, state.memory)),
      'optimizer_state_bytes': tree_bytes(state.opt_state),
      'backbone_bytes': tree_bytes(experiment.frozen),
      'forward_passes_per_prediction': method.passes(max(1, done)),
      'seconds_per_task': position.seconds[:done],
      'train_images_per_second': (
        position.images / position.training_seconds if position.training_seconds else None
      ),
      'peak_memory_bytes': position.peak_bytes or None,
      'seeds_together': len(position.seeds),  # Times and memory are those of all.
    },
    'identity': describe(experiment),
    'seed': experiment.seed,
    'compilations': position.compilations,
    'state_sha256': digest,
  }


def metrics(
  matrix: list[list[float | None]], sizes: list[int], joint: list[float] | None = None
) -> dict[str, float]:
  """The metrics of the rows there are.

  Args:
    matrix: [time][task], None above the diagonal.
    sizes: [T], of the test sets.
    joint: [T] accuracy of joint training on tasks 1..k, on task k.
  """
  array = np.array(matrix, np.float64)
  k = len(array)
  star = None if joint is None or len(joint) < k else np.asarray(joint[:k])
  return summarise(array[:, :k], np.asarray(sizes[:k]), joint=star)


def peak_memory() -> int:
  """Largest resident size of this process so far, in bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
