"""results.json: the outcome of a run, in its public format."""

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pecft_jax.measures import Measure
from pecft_jax.metrics import Evaluation, summarise
from pecft_jax.paths import tree_bytes, tree_size
from pecft_jax.settings import transform_of, wrappers_of
from pecft_jax.train.experiment import Experiment, configuration
from pecft_jax.typing import ContinualMethod, TrainState
from pecft_jax.workdir.position import Findings, Position


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
  found, measure = position.seeds[seed], method.capacity.problem.measure
  primary = found.aware if scenario.kind == 'task' else found.accuracy
  done = len(found.accuracy)
  made = configuration(experiment, method)
  transform = transform_of(made['method'])
  more = {
    f'start_{measure.key}': found.start,
    'probes': found.probes
    and {
      'names': [probe.name for probe in scenario.probes],
      'matrix': found.probes,
    },
    'anytime': found.anytime,
  }
  out = {
    'name': scenario.name,
    'status': 'running' if digest is None else 'done',
    'scenario': scenario.kind,
    'method': method.name,
    'peft': None if transform is None else transform['name'],
    'wrappers': wrappers_of(made['method']),
    **experiment.labels,
    'tasks': [task.name for task in scenario.tasks],
    'class_names': list(scenario.class_names),
    'test_sizes': sizes,
    **_by_class(experiment, found, done),
    'measure': measure._asdict(),
    'axis': ['time', 'task'],
    f'{measure.key}_matrix': primary,
    f'task_aware_{measure.key}_matrix': found.aware,
    **{name: value for name, value in more.items() if value},
    'metrics': {},
    'efficiency': {
      'trainable_parameters': tree_size(state.params),
      'carried_state_bytes': tree_bytes((state.params, state.memory)),
      'optimizer_state_bytes': tree_bytes(state.opt_state),
      'backbone_bytes': tree_bytes(experiment.frozen),
      'forward_passes_per_prediction': method.passes(max(1, done)),
      'seconds_per_task': position.seconds[:done],
      'compile_seconds': round(position.compile_seconds, 3),
      'train_images_per_second': (
        position.images / position.training_seconds if position.training_seconds else None
      ),
      'peak_memory_bytes': position.peak_bytes or None,
      'seeds_together': len(position.seeds),  # Times and memory are those of all.
    },
    'identity': made['identity'],
    'settings': {'method': made['method'], 'training': made['training']},
    'seed': experiment.seed,
    'compilations': position.compilations,
    'state_sha256': digest,
  }
  return {**out, 'metrics': metrics(out)}


def _by_class(experiment: Experiment, found: Findings, done: int) -> dict[str, Any]:
  """The accuracy on each class after the last finished task, and the sizes that it is from."""
  scenario = experiment.scenario
  if not found.by_class:
    return {'per_class_accuracy': None, 'class_test_sizes': None}
  labels = np.concatenate([task.test.labels for task in scenario.tasks[:done]])
  sizes = np.bincount(labels, minlength=len(scenario.class_order)).tolist()
  right = found.by_class[1 if scenario.kind == 'task' else 0]
  shares = [hits / n if n else None for hits, n in zip(right, sizes, strict=True)]
  return {'per_class_accuracy': shares, 'class_test_sizes': sizes}


def metrics(
  found: Mapping[str, Any],
  joint: Sequence[float] | None = None,
  single: Sequence[float] | None = None,
) -> dict[str, float]:
  """The metrics of the tasks that are finished.

  Args:
    found: content of results.json.
    joint: [k], joint training on tasks 1..k evaluated on task k.
    single: [k], training on task k alone evaluated on it.
  """
  measure = Measure(**found['measure'])
  matrix, sizes = found[f'{measure.key}_matrix'], found['test_sizes']
  if not matrix:
    return {}
  which = 'aware' if found['scenario'] == 'task' else 'evaluated'
  within = [Evaluation(row['task'], row[which]) for row in found.get('anytime', ())]
  at_ends = [Evaluation(t, row) for t, row in enumerate(matrix)]
  return summarise(
    np.array(matrix, np.float64),
    sizes,
    joint=_of_all(joint, len(matrix), len(sizes)),
    single=_of_all(single, len(matrix), len(sizes)),
    start=found.get(f'start_{measure.key}'),
    # In order of time: sorting keeps what lies within a task before its end.
    evaluations=sorted(within + at_ends, key=lambda each: each.task) if within else None,
    measure=measure,
  )


def _of_all(known: Sequence[float] | None, finished: int, tasks: int) -> list[float] | None:
  """One value per task, NaN where not known yet; None unless those of finished tasks are."""
  if known is None or len(known) < finished:
    return None
  return [*known[:tasks], *[float('nan')] * (tasks - len(known))]


def peak_memory() -> int:
  """Largest resident size of this process so far, in bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
