"""Runs an experiment in a work directory; the same call resumes it."""

import contextlib
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from rich.console import Console

from pecft_jax.train.checkpoint import Checkpoints
from pecft_jax.train.experiment import Experiment, check_experiment, describe
from pecft_jax.train.loop import Loop, NonFiniteLoss, run_tasks, settle
from pecft_jax.train.position import Position
from pecft_jax.train.progress import Reporter
from pecft_jax.train.record import Record, Writer, plain, write_json
from pecft_jax.train.results import metrics, peak_memory, results
from pecft_jax.train.sharding import Layout, check_batches, one_device
from pecft_jax.train.signals import stop_signals
from pecft_jax.train.state import tree_sha256
from pecft_jax.train.step import Steps, compilations, compile_steps
from pecft_jax.train.workdir import claim, locked
from pecft_jax.typing import ContinualMethod, TrainState


class Stopped(Exception):
  """The run was asked to stop, has saved, and can be resumed."""


def run(
  experiment: Experiment,
  workdir: str | pathlib.Path,
  *,
  config: dict[str, Any] | None = None,
  layout: Layout | None = None,
  save_every: float = 60.0,
  writers: tuple[Writer, ...] = (),
  console: Console | None = None,
) -> dict[str, Any]:
  """Runs the method of an experiment, then its references, and records what they find.

  The work directory gets `config.json`, `metrics.jsonl`, `metrics.csv`,
  `results.json` and `checkpoints/`; that of a reference lies in
  `references/NAME/`. A run that was interrupted anywhere goes on where its
  newest good checkpoint stands, and ends as if it had never stopped: only
  measured times and memory differ. A finished run is read, not run again.

  Args:
    experiment: what to run.
    workdir: made if need be.
    config: settings that must be the same on resuming, as JSON.
    layout: mesh and sharding rules; the first device alone by default. A run
      may be resumed on another one.
    save_every: seconds between checkpoints; there is one after each task, too.
    writers: take rows of metrics beside the files.
    console: for progress; standard output by default.

  Returns:
    The content of results.json.

  Raises:
    ValueError: for parts that do not fit together, or a work directory of
      another configuration or in use.
    NonFiniteLoss: if training diverges.
    Stopped: after SIGTERM or SIGINT, once everything is saved.
  """
  layout = one_device() if layout is None else layout
  console = Console() if console is None else console
  check_experiment(experiment)
  sizes = {name: getattr(experiment.training, name) for name in ('batch_size', 'eval_batch_size')}
  check_batches(layout, sizes)
  if 'backbone_sha256' not in experiment.identity:
    identity = {**experiment.identity, 'backbone_sha256': tree_sha256(experiment.frozen)}
    experiment = experiment._replace(identity=identity)
  directory = pathlib.Path(workdir)
  with locked(directory), stop_signals() as stopping:

    def one(method: ContinualMethod, at: pathlib.Path, name: str, **options: Any) -> dict[str, Any]:
      at.mkdir(parents=True, exist_ok=True)
      claim(at, _config(experiment, method, config or {}))
      job = _Job(experiment, method, at, name, layout, save_every, console, stopping, **options)
      return _run_method(job)

    found = one(experiment.method, directory, experiment.method.name, writers=writers)
    references = {}
    for name, method in experiment.references.items():
      references[name] = one(method, directory / 'references' / name, f'reference {name}')
    if references:
      found['references'] = {name: each['metrics'] for name, each in references.items()}
      if 'joint' in references:
        joint = [row[k] for k, row in enumerate(references['joint']['accuracy_matrix'])]
        found['metrics'] = metrics(found['accuracy_matrix'], found['test_sizes'], joint)
      write_json(directory / 'results.json', found)
  return found


def _config(
  experiment: Experiment, method: ContinualMethod, settings: dict[str, Any]
) -> dict[str, Any]:
  """What must be the same on resuming."""
  training = experiment.training
  numbers = ('epochs', 'batch_size', 'eval_batch_size', 'log_every', 'cache_queries')
  return {
    'settings': settings,
    'method': method.name,
    'training': {name: getattr(training, name) for name in numbers},
    'seed': experiment.seed,
    'identity': describe(experiment),
  }


class _Job(NamedTuple):
  """One method with its work directory."""

  experiment: Experiment
  method: ContinualMethod
  directory: pathlib.Path
  name: str
  layout: Layout
  save_every: float
  console: Console
  stopping: Callable[[], bool]
  writers: tuple[Writer, ...] = ()

  def write(self, state: TrainState, position: Position, digest: str | None) -> dict[str, Any]:
    """Writes results.json, and returns its content."""
    found = results(self.experiment, self.method, state, position, digest=digest)
    write_json(self.directory / 'results.json', found)
    return found


def _run_method(job: _Job) -> dict[str, Any]:
  experiment, directory = job.experiment, job.directory
  steps = compile_steps(job.method, experiment.training.recipe, job.layout, experiment.frozen)
  frozen = jax.device_put(experiment.frozen, steps.frozen_shardings)
  key = jax.random.key(experiment.seed)
  identity = plain(describe(experiment))
  checkpoints = Checkpoints(directory / 'checkpoints', identity=identity)
  like = jax.eval_shape(steps.init, key, frozen)
  # Messages of other libraries may hold brackets, which are not meant as markup.
  tell = lambda text: job.console.print(f'{directory}: {text}', style='yellow', markup=False)
  found = checkpoints.newest(like, steps.state_shardings, tell)
  state, position = found or (steps.init(key, frozen), Position())
  if len(position.accuracy) < len(experiment.scenario.tasks):
    if not found:
      job.write(state, position, None)
    try:
      state = _run_from(job, steps, frozen, checkpoints, state=state, position=position)
    finally:
      checkpoints.wait()
  return job.write(state, position, tree_sha256(state))


def _run_from(
  job: _Job,
  steps: Steps,
  frozen: Any,
  checkpoints: Checkpoints,
  *,
  state: TrainState,
  position: Position,
) -> TrainState:
  """Runs from a position to the end, and saves the end."""
  last_save, saved = time.monotonic(), position.tick

  with (
    contextlib.closing(Record(job.directory, position.rows, job.writers)) as record,
    Reporter(job.experiment, job.method, job.name, job.console) as reporter,
  ):

    def save(state: TrainState, position: Position) -> None:
      nonlocal last_save, saved
      settle(position)  # No state that is not finite is ever saved.
      position.compilations = compilations(steps, position.compilations)
      position.peak_bytes = max(position.peak_bytes, peak_memory())
      record.sync()
      checkpoints.save(position.tick, state, position)
      last_save, saved = time.monotonic(), position.tick

    def after_batch(state: TrainState, position: Position) -> None:
      stop, boundary = job.stopping(), position.at_boundary()
      if boundary or stop or time.monotonic() - last_save >= job.save_every:
        save(state, position)
      if boundary:
        job.write(state, position, None)
      if stop:
        raise Stopped(f'stopped at task {position.task}, {position.phase} {position.batch}')

    loop = Loop(job.experiment, job.method, steps, frozen, record, after_batch, reporter)
    try:
      state = run_tasks(loop, state, position)
    except NonFiniteLoss as error:
      where = f'checkpoint {saved} in {job.directory / "checkpoints"}' if saved else 'none yet'
      raise NonFiniteLoss(f'{error}; last good checkpoint: {where}') from None
  return state
