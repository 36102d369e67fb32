"""Runs an experiment in a work directory; the same call resumes it."""

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from pecft_jax.devices.processes import barrier, first_only, is_first
from pecft_jax.devices.sharding import Layout, check_batches, make_mesh, one_device
from pecft_jax.files import write_json
from pecft_jax.local import work_directory
from pecft_jax.measures import Measure
from pecft_jax.train.experiment import (
  Experiment,
  check_experiment,
  configuration,
  describe,
  facts_of,
  identified,
  trained_as,
)
from pecft_jax.train.job import Job, check_there, run_job
from pecft_jax.train.options import RunOptions
from pecft_jax.train.results import metrics
from pecft_jax.train.schedule import check_batch_size
from pecft_jax.train.side_by_side import check_side_by_side
from pecft_jax.train.signals import stop_signals
from pecft_jax.typing import ContinualMethod
from pecft_jax.workdir.branch import copy_branch, find_branch
from pecft_jax.workdir.claim import claim, locked

DEFAULTS = RunOptions()


def run(
  experiment: Experiment,
  workdir: str | pathlib.Path | None = None,
  options: RunOptions = DEFAULTS,
) -> dict[str, Any]:
  """Runs the method of an experiment, then its references, and records their results.

  The work directory gets `config.json`, `metrics.jsonl`, `metrics.csv`,
  `results.json` and `checkpoints/`; that of a reference lies in
  `references/NAME/`. A run that was interrupted anywhere goes on where its
  newest good checkpoint stands, and ends as if it had never stopped: only
  measured times and memory differ. A finished run is read, not run again.

  In a job of several processes, all call this with equal arguments and one
  work directory that all of them see.

  Args:
    experiment: what to run.
    workdir: made if it does not exist. None: nothing is kept but what is returned, and a run that
      is interrupted begins anew; one process only.
    options: devices, checkpoints, log.

  Returns:
    The content of results.json.

  Raises:
    ValueError: for parts that do not fit together, or a work directory of
      another configuration or in use.
    NonFiniteLoss: if training diverges.
    Stopped: after SIGTERM or SIGINT, once everything is saved.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import Training, sgd
  >>> images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.simplecil(model.backbone, scenario.capacity)
  >>> training = Training(sgd(0.1), epochs=1, batch_size=2, eval_batch_size=2)
  >>> experiment = Experiment(model, scenario, method, training)
  >>> quiet = RunOptions(console=Console(quiet=True))
  >>> results = run(experiment, 'runs/shades', quiet)
  >>> results['status'], len(results['accuracy_matrix'])
  ('done', 2)
  """
  with _directory(workdir) as directory:
    return _run({'.': experiment}, directory, options, stacked=False, kept=workdir is not None)[0]


def run_seeds(
  experiment: Experiment,
  seeds: Sequence[int],
  workdir: str | pathlib.Path | None = None,
  options: RunOptions = DEFAULTS,
) -> list[dict[str, Any]]:
  """Runs several seeds of an experiment side by side, as one compiled program.

  Each seed has its own initialisation, order and views, and ends where `run`
  with that seed does, up to rounding; the backbone is there once. The work
  directory has one `seed_N/` for each, as `run` writes it, beside the
  checkpoints of all. On a mesh with an axis `seed` they are sharded over it.

  Args:
    experiment: what to run; its own seed is ignored.
    seeds: all different.
    workdir: made if it does not exist; None as in `run`.
    options: devices, checkpoints, log; without `writers`.

  Returns:
    The content of each seed's results.json.

  Raises:
    ValueError: for seeds that are not all different, or `writers`; and as `run`.
    NonFiniteLoss: as `run`.
    Stopped: as `run`.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import Training, sgd
  >>> images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1])
  >>> scenario = data.class_incremental(source, source, tasks=2)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.simplecil(model.backbone, scenario.capacity)
  >>> training = Training(sgd(0.1), epochs=1, batch_size=2, eval_batch_size=2)
  >>> experiment = Experiment(model, scenario, method, training)
  >>> quiet = RunOptions(console=Console(quiet=True))
  >>> results = run_seeds(experiment, [0, 1], 'runs/shades_seeds', quiet)
  >>> [found['status'] for found in results]
  ['done', 'done']
  """
  if len(set(seeds)) < len(seeds) or not seeds:
    raise ValueError(f'expected seeds that are all different, at least one, got {list(seeds)}')
  if options.writers:
    raise ValueError(
      'writers take the rows of one seed, run_seeds has several logs: read seed_N/metrics.jsonl'
    )
  experiments = {f'seed_{seed}': experiment.replace(seed=seed) for seed in seeds}
  together = {'seeds_together': list(seeds)}
  with _directory(workdir) as directory:
    return _run(
      experiments, directory, options, stacked=True, kept=workdir is not None, together=together
    )


def run_orders(
  experiments: Mapping[str, Experiment],
  workdir: str | pathlib.Path | None = None,
  options: RunOptions = DEFAULTS,
) -> dict[str, dict[str, Any]]:
  """Runs several orders of the same data side by side, as one compiled program.

  As `run_seeds`, for experiments that differ in the order of their classes, and in their seeds if
  they like: each ends where `run` of it alone does, up to rounding. Their tasks must have equal
  numbers of classes and of examples, one by one. The work directory has one directory for each, as
  `run` writes it, beside the checkpoints of all. Tokens below the lowest trained block are not
  kept.

  Args:
    experiments: by the name of their directory, a plain one. All have one and the same model,
      method, training, references and rules.
    workdir: made if it does not exist; None as in `run`.
    options: devices, checkpoints, log; without `writers` and `branch`.

  Returns:
    The content of each results.json, by name.

  Raises:
    ValueError: for experiments that differ in anything else, names that are no plain ones, or
      `writers` or `branch`; and as `run`.
    NonFiniteLoss: as `run`.
    Stopped: as `run`.

  >>> import numpy as np
  >>> from rich.console import Console
  >>> from pecft_jax import backbones, continual, data
  >>> from pecft_jax.train import Training, sgd
  >>> images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8, 1)
  >>> source = data.arrays('shades', images, labels=[0, 0, 1, 1])
  >>> ordered = lambda order: data.class_incremental(source, source, tasks=2, order=order)
  >>> model = backbones.random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  >>> method = continual.simplecil(model.backbone, ordered('natural').capacity)
  >>> training = Training(sgd(0.1), epochs=1, batch_size=2, eval_batch_size=2)
  >>> first = Experiment(model, ordered('natural'), method, training)
  >>> both = {'natural': first, 'reverse': first.replace(scenario=ordered([1, 0]))}
  >>> quiet = RunOptions(console=Console(quiet=True))
  >>> results = run_orders(both, 'runs/shades_orders', quiet)
  >>> results['reverse']['class_names']
  ['1', '0']
  """
  if options.writers or options.branch is not None:
    raise ValueError('run_orders takes no writers and no branch: read NAME/metrics.jsonl')
  check_side_by_side(experiments)
  together = {'orders_together': list(experiments)}
  with _directory(workdir) as directory:
    found = _run(
      experiments, directory, options, stacked=True, kept=workdir is not None, together=together
    )
  return dict(zip(experiments, found, strict=True))


@contextlib.contextmanager
def _directory(workdir: str | pathlib.Path | None) -> Iterator[pathlib.Path]:
  """The work directory; a temporary one, removed at the end, where there is none.

  Raises:
    ValueError: for None in a job of several processes, or a path that cannot be used.
  """
  if workdir is not None:
    yield work_directory(workdir)
    return
  if jax.process_count() > 1:
    raise ValueError(
      f'a job of {jax.process_count()} processes needs a work directory that all of them see: '
      'expected a path, got workdir=None'
    )
  with tempfile.TemporaryDirectory(prefix='pecft-') as made:
    yield work_directory(made)


def _run(
  experiments: Mapping[str, Experiment],
  directory: pathlib.Path,
  options: RunOptions,
  *,
  stacked: bool,
  kept: bool,
  together: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[dict[str, Any]]:
  """Runs experiments side by side, each in its place below a directory.

  Args:
    experiments: by place, as `Loop` has them.
    directory: holds the checkpoints.
    options: devices, checkpoints, log.
    stacked: whether states have a leading axis for experiments.
    kept: whether the directory is there after the run.
    together: what config.json says of the experiments beside each.
  """
  for each in experiments.values():
    if not 0 <= each.seed < 2**32:
      raise ValueError(f'expected seeds in 0..2**32 - 1, got {each.seed}')
  places, experiment = tuple(experiments), next(iter(experiments.values()))
  for each in experiments.values():
    if each is experiment or each.scenario is not experiment.scenario:
      check_experiment(each)
  check_batch_size(trained_as(experiment, experiment.method))
  layout = _default_layout() if options.layout is None else options.layout
  sizes = {name: getattr(experiment.training, name) for name in ('batch_size', 'eval_batch_size')}
  check_batches(layout, sizes)
  options = dataclasses.replace(options, layout=layout)
  # Neither the branch nor the writers are the references'.
  beside = dataclasses.replace(options, branch=None, writers=())
  lanes = _identified(tuple(experiments.values()))
  with contextlib.ExitStack() as stack:
    first_only(lambda: stack.enter_context(locked(directory)))
    stopping = stack.enter_context(stop_signals())

    def job_of(method: ContinualMethod, at: str, name: str, options: RunOptions) -> Job:
      return Job(
        experiments=tuple(trained_as(each, method) for each in lanes),
        method=method,
        name=name,
        stacked=stacked,
        kept=kept,
        directory=directory / at,
        outputs=tuple(directory / place / at for place in places),
        options=options,
        stopping=stopping,
      )

    def one(job: Job) -> list[Any]:
      first_only(lambda: _prepare(job, directory, places, together))
      _check_shared(job.outputs[0])
      return run_job(job)

    main = job_of(experiment.method, '.', experiment.method.name, options)
    others = {
      name: job_of(method, f'references/{name}', f'reference {name}', beside)
      for name, method in experiment.references.items()
    }
    # Before anything is written: the results of the method include the references'.
    for job in (main, *others.values()):
      first_only(functools.partial(check_there, job))
    found = one(main)
    references = {name: one(job) for name, job in others.items()}
    for i, place in enumerate(places):
      found[i] = _with_references(found[i], {name: each[i] for name, each in references.items()})
      if references and is_first():
        write_json(directory / place / 'results.json', found[i])
  return found


def _identified(experiments: Sequence[Experiment]) -> tuple[Experiment, ...]:
  """`identified` of experiments side by side; data that they share are read once."""
  models = {}
  for each in experiments:
    if id(each.scenario) not in models:
      models[id(each.scenario)] = identified(each).model
  return tuple(each.replace(model=models[id(each.scenario)]) for each in experiments)


def _prepare(
  job: Job, directory: pathlib.Path, logs: tuple[str, ...], together: Mapping[str, Any]
) -> None:
  """Makes the directories of a job, each claimed by its configuration; copies its branch."""
  options, branch, tick = job.options, job.options.branch, None
  notes = []

  def mine(output: pathlib.Path, experiment: Experiment, **seed: int) -> list[str]:
    return claim(
      output,
      {**_config(job, experiment), **together, **seed},
      command=options.command,
      files=options.files,
      facts=facts_of(experiment),
      accept_changes=options.accept_changes,
    )

  if branch is not None:
    tick = find_branch(branch, describe(job.experiment), directory, logs)
  if job.stacked:
    job.directory.mkdir(parents=True, exist_ok=True)
    mine(job.directory, job.experiment)
  for experiment, output in zip(job.experiments, job.outputs, strict=True):
    output.mkdir(parents=True, exist_ok=True)
    notes = mine(output, experiment, seed=experiment.seed)
  for note in notes if job.directory == directory else ():  # Those of references are the same.
    job.console.print(f'{directory}: {note}', style='yellow', markup=False)
  if branch is not None and tick is not None:
    copy_branch(branch, tick, directory, logs)


def _default_layout() -> Layout:
  return one_device() if jax.process_count() == 1 else Layout(make_mesh())


def _check_shared(directory: pathlib.Path) -> None:
  """Raises ValueError where a process does not see what the first has written."""
  barrier('work directory')
  if not (directory / 'config.json').exists():
    raise ValueError(
      f'process {jax.process_index()} does not see {directory}/config.json, which process 0 has '
      'written: expected a work directory on a file system that all processes share'
    )


def _config(job: Job, experiment: Experiment) -> dict[str, Any]:
  """The part of config.json that must be the same on resuming."""
  branch = job.options.branch
  found = {
    'settings': dict(job.options.config),
    **configuration(experiment, job.method),
  }
  if branch is not None:
    found['branch'] = branch.to_json()
  return found


def _with_references(found: dict[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
  """The results with what the references found, and the metrics that need two of them."""
  if not references:
    return found
  found = {**found, 'references': {name: each['metrics'] for name, each in references.items()}}
  matrix = f'{Measure(**found["measure"]).key}_matrix'
  learned = {
    name: [row[k] for k, row in enumerate(references[name][matrix])]
    for name in ('joint', 'single_task')
    if name in references
  }
  return {**found, 'metrics': metrics(found, learned.get('joint'), learned.get('single_task'))}
