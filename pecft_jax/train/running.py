"""Runs an experiment in a work directory; the same call resumes it."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from pecft_jax.devices.processes import barrier, first_only, is_first
from pecft_jax.devices.sharding import Layout, check_batches, make_mesh, one_device
from pecft_jax.train.experiment import Experiment, check_experiment, describe, identified
from pecft_jax.train.job import Job, run_job
from pecft_jax.train.results import metrics
from pecft_jax.train.signals import stop_signals
from pecft_jax.typing import ContinualMethod
from pecft_jax.workdir.branch import Branch, copy_branch, find_branch
from pecft_jax.workdir.claim import claim, locked
from pecft_jax.workdir.record import Writer, write_json


def run(
  experiment: Experiment, workdir: str | pathlib.Path, *, writers: Sequence[Writer] = (), **how: Any
) -> dict[str, Any]:
  """Runs the method of an experiment, then its references, and records what they find.

  The work directory gets `config.json`, `metrics.jsonl`, `metrics.csv`,
  `results.json` and `checkpoints/`; that of a reference lies in
  `references/NAME/`. A run that was interrupted anywhere goes on where its
  newest good checkpoint stands, and ends as if it had never stopped: only
  measured times and memory differ. A finished run is read, not run again.

  In a job of several processes, all call this with equal arguments and one
  work directory that all of them see.

  Args:
    experiment: what to run.
    workdir: made if need be.
    writers: take rows of metrics beside the files.
    **how: keywords of `run_seeds`.

  Returns:
    The content of results.json.

  Raises:
    ValueError: for parts that do not fit together, or a work directory of
      another configuration or in use.
    NonFiniteLoss: if training diverges.
    Stopped: after SIGTERM or SIGINT, once everything is saved.
  """
  directory = pathlib.Path(workdir)
  rows = {experiment.seed: tuple(writers)}
  return _run(experiment, directory, {experiment.seed: '.'}, rows, stacked=False, **how)[0]


def run_seeds(
  experiment: Experiment,
  seeds: Sequence[int],
  workdir: str | pathlib.Path,
  *,
  config: dict[str, Any] | None = None,
  command: Mapping[str, Any] | None = None,
  layout: Layout | None = None,
  save_every: float = 60.0,
  keep_tasks: bool = False,
  branch: Branch | None = None,
  console: Console | None = None,
) -> list[dict[str, Any]]:
  """Runs several seeds of an experiment side by side, as one compiled program.

  Each seed has its own initialisation, order and views, and ends where `run`
  with that seed does, up to rounding; the backbone is there once. The work
  directory has one `seed_N/` for each, as `run` writes it, beside the
  checkpoints of all. On a mesh with an axis `seed` they are split over it.

  Args:
    experiment: what to run; its own seed counts for nothing.
    seeds: all different.
    workdir: made if need be.
    config: settings that must be the same on resuming, as JSON.
    command: how the run was started, which need not be the same; kept with the
      configuration.
    layout: mesh and sharding rules. By default the first device alone, or, in
      a job of several processes, all devices along `data`. A run may be
      resumed on another one.
    save_every: seconds between checkpoints; there is one after each task, too.
    keep_tasks: keep the checkpoint after each task, to branch from; otherwise
      the two newest checkpoints stay.
    branch: start where another run stood after a task.
    console: for progress; standard output by default.

  Returns:
    The content of each seed's results.json.

  Raises:
    As `run`.
  """
  if len(set(seeds)) < len(seeds) or not seeds:
    raise ValueError(f'expected seeds that are all different, at least one, got {list(seeds)}')
  places = {seed: f'seed_{seed}' for seed in seeds}
  return _run(
    experiment, pathlib.Path(workdir), places, {}, stacked=True, config=config, command=command,
    layout=layout, save_every=save_every, keep_tasks=keep_tasks, branch=branch, console=console,
  )  # fmt: skip


def _run(
  experiment: Experiment,
  directory: pathlib.Path,
  places: dict[int, str],
  writers: dict[int, tuple[Writer, ...]],
  *,
  stacked: bool,
  config: dict[str, Any] | None = None,
  command: Mapping[str, Any] | None = None,
  layout: Layout | None = None,
  save_every: float = 60.0,
  keep_tasks: bool = False,
  branch: Branch | None = None,
  console: Console | None = None,
) -> list[dict[str, Any]]:
  """Runs seeds, each in its place below a directory."""
  layout = _default_layout() if layout is None else layout
  console = Console() if console is None else console
  if not is_first():
    console = Console(quiet=True)
  for seed in places:
    if not 0 <= seed < 2**32:
      raise ValueError(f'expected seeds in 0..2**32 - 1, got {seed}')
  check_experiment(experiment)
  sizes = {name: getattr(experiment.training, name) for name in ('batch_size', 'eval_batch_size')}
  check_batches(layout, sizes)
  experiment = identified(experiment)
  with contextlib.ExitStack() as stack:
    first_only(lambda: stack.enter_context(locked(directory)))
    stopping = stack.enter_context(stop_signals())

    def one(method: ContinualMethod, at: str, name: str, **options: Any) -> list[Any]:
      outputs = tuple(directory / place / at for place in places.values())
      settings = _config(experiment, method, config or {}, tuple(places))
      leaving = branch if method is experiment.method else None
      if leaving is not None:
        settings['branch'] = leaving.to_json()

      def prepare() -> None:
        tick, logs = None, tuple(places.values())
        if leaving is not None:
          tick = find_branch(leaving, describe(experiment), directory, logs)
        if stacked:
          (directory / at).mkdir(parents=True, exist_ok=True)
          claim(directory / at, settings, command)
        for seed, output in zip(places, outputs, strict=True):
          output.mkdir(parents=True, exist_ok=True)
          claim(output, {**settings, 'seed': seed}, command)
        if leaving is not None and tick is not None:
          copy_branch(leaving, tick, directory, logs)

      first_only(prepare)
      _check_shared(outputs[0])
      job = Job(
        experiment, method, tuple(places), stacked, directory / at, outputs, name, layout,
        save_every, keep_tasks, console, stopping, **options,
      )  # fmt: skip
      return run_job(job)

    found = one(experiment.method, '.', experiment.method.name, writers=writers)
    references = {
      name: one(method, f'references/{name}', f'reference {name}')
      for name, method in experiment.references.items()
    }
    for i, place in enumerate(places.values()):
      beside = {name: each[i] for name, each in references.items()}
      found[i] = _with_references(found[i], beside)
      if references and is_first():
        write_json(directory / place / 'results.json', found[i])
  return found


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


def _config(
  experiment: Experiment, method: ContinualMethod, settings: dict[str, Any], seeds: tuple[int, ...]
) -> dict[str, Any]:
  """What must be the same on resuming."""
  training = experiment.training
  numbers = ('epochs', 'batch_size', 'eval_batch_size', 'log_every', 'cache_queries')
  found = {
    'settings': settings,
    'method': method.name,
    'training': {name: getattr(training, name) for name in numbers},
    'identity': describe(experiment),
  }
  return {**found, 'seeds_together': list(seeds)} if len(seeds) > 1 else found


def _with_references(found: dict[str, Any], references: dict[str, Any]) -> dict[str, Any]:
  """The results with what the references found, and the metrics that need joint training."""
  if not references:
    return found
  found = {**found, 'references': {name: each['metrics'] for name, each in references.items()}}
  if 'joint' in references:
    joint = [row[k] for k, row in enumerate(references['joint']['accuracy_matrix'])]
    found['metrics'] = metrics(found['accuracy_matrix'], found['test_sizes'], joint)
  return found
