"""One method, run on one or several experiments from its newest checkpoint to its end."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.processes import agreement, is_first
from pecft_jax.devices.sharding import (
  Layout,
  batch_part,
  describe_rules,
  place,
  replicated,
  traced_on,
)
from pecft_jax.environment import environment
from pecft_jax.files import json_line, plain, read_json, write_json
from pecft_jax.train.compiling import compile_clock
from pecft_jax.train.context import Loop, NonFiniteLoss, own_data
from pecft_jax.train.experiment import Experiment, configuration, describe
from pecft_jax.train.kept import Kept
from pecft_jax.train.logs import settle
from pecft_jax.train.loop import run_tasks
from pecft_jax.train.lower import below_of_batch, lower_of, rows_of_tests, rows_of_training
from pecft_jax.train.options import RunOptions
from pecft_jax.train.part_files import PartFiles
from pecft_jax.train.progress import Reporter
from pecft_jax.train.results import peak_memory, results
from pecft_jax.train.step import Steps, compilations, compile_steps
from pecft_jax.train.tokens import KeptTokens
from pecft_jax.typing import ContinualMethod, Params, Parts, TrainState
from pecft_jax.workdir.checkpoint import Checkpoints
from pecft_jax.workdir.claim import ran_in
from pecft_jax.workdir.position import Findings, Position
from pecft_jax.workdir.record import Record, Unwritten

if TYPE_CHECKING:
  from rich.console import Console


_GIB = 2**30


class Stopped(Exception):
  """The run was asked to stop, has saved, and can be resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
  """A method with its experiments and its work directory.

  Attributes:
    experiments: one, or several side by side, as in `Loop`.
    method: that is run.
    name: for the terminal.
    stacked: whether states have a leading axis for experiments.
    kept: whether the directory is there after the run.
    directory: holds the checkpoints.
    outputs: directory of each experiment's log and results.
    options: with a layout.
    stopping: whether this process was asked to stop.
  """

  experiments: tuple[Experiment, ...]
  method: ContinualMethod
  name: str
  stacked: bool
  kept: bool
  directory: pathlib.Path
  outputs: tuple[pathlib.Path, ...]
  options: RunOptions
  stopping: Callable[[], bool]

  @property
  def experiment(self) -> Experiment:
    """The first of them: what they have in common."""
    return self.experiments[0]

  @property
  def layout(self) -> Layout:
    """Mesh and sharding rules."""
    assert self.options.layout is not None
    return self.options.layout

  @functools.cached_property
  def console(self) -> 'Console':
    """For progress; only the first process prints."""
    from rich.console import Console

    if not is_first():
      return Console(quiet=True)
    return Console() if self.options.console is None else self.options.console

  def warn(self, text: str) -> None:
    """Prints a note on the work directory."""
    # Messages of other libraries may contain brackets, which are not markup.
    self.console.print(f'{self.directory}: {text}', style='yellow', markup=False)

  def write(self, state: Any, position: Position, digests: list[Any]) -> list[dict[str, Any]]:
    """Writes each experiment's results.json, and returns their contents."""
    found = []
    lanes = zip(self.experiments, self.outputs, digests, strict=True)
    for i, (experiment, output, digest) in enumerate(lanes):
      each = jax.eval_shape(lambda state, i=i: self.of_seed(state, i), state)
      found.append(
        {
          **results(experiment, self.method, each, position, digest=digest, seed=i),
          'environment': ran_in(output, done=digest is not None),
        }
      )
      if is_first():
        write_json(output / 'results.json', found[-1])
    return found

  def of_seed(self, state: Any, i: int) -> Any:
    """The state of one experiment."""
    return jax.tree.map(lambda leaf: leaf[i], state) if self.stacked else state


def run_job(job: Job) -> list[dict[str, Any]]:
  """Runs a method to its end.

  Returns:
    The content of each experiment's results.json.

  Raises:
    ValueError: if its checkpoints are of another run.
    NonFiniteLoss: if training diverges.
    Stopped: if it was asked to stop, once everything is saved.
  """
  if (ended := _ended(job)) is not None:
    return ended
  with compile_clock() as compiled:
    return _run_to_end(job, compiled)


def _run_to_end(job: Job, compiled: Callable[[], float]) -> list[dict[str, Any]]:
  """`run_job` of one that has not ended; `compiled` gives the seconds spent on compiling so far."""
  experiment, layout = job.experiment, job.layout
  steps = compile_steps(
    job.method,
    experiment.training.recipe,
    layout,
    experiment.frozen,
    stacked=job.stacked,
    own_data=own_data(job.experiments),
    restart=experiment.training.restart,
  )
  frozen = place(experiment.frozen, steps.frozen_shardings)
  checkpoints = Checkpoints(
    job.directory / 'checkpoints',
    keep_tasks=job.options.keep_tasks,
    identity=plain(describe(experiment)),
  )
  key = _key(job)
  like = jax.eval_shape(steps.init, key, frozen)
  if layout.mesh.size > 1:
    one = jax.eval_shape(lambda state: job.of_seed(state, 0), like)
    job.console.print(describe_rules(layout, one, frozen), markup=False, soft_wrap=True)
  found = checkpoints.newest(like, steps.state_shardings, job.warn)
  start = Position(seeds=[Findings() for _ in job.experiments])
  state, position = found or (steps.init(key, frozen), start)
  if position.evaluated() < len(experiment.scenario.tasks):
    if not found:
      job.write(state, position, [None] * len(job.experiments))
    try:
      state = _run_from(job, steps, frozen, checkpoints, compiled, state=state, position=position)
    finally:
      checkpoints.wait()
  shutil.rmtree(_parts_in(job), ignore_errors=True)
  digests = [tree_sha256(job.of_seed(state, i)) for i in range(len(job.experiments))]
  return job.write(state, position, digests)


def _ended(job: Job) -> list[dict[str, Any]] | None:
  """The results of a run that has ended, which are read, not made again; None of any other."""
  found = []
  for output in job.outputs:
    try:
      found.append(read_json(output / 'results.json'))
    except (OSError, ValueError):  # None yet; what is damaged is made again from a checkpoint.
      return None
  return found if all(each.get('status') == 'done' for each in found) else None


def check_there(job: Job) -> None:
  """Raises ValueError where a run has results, but its checkpoints are gone."""
  directory = job.directory / 'checkpoints'
  if directory.is_dir() and any(directory.iterdir()):
    return
  for output in job.outputs:
    results = output / 'results.json'
    known = read_json(results) if results.exists() else {}
    # A kill may come before the first checkpoint is whole, but not before there is a directory.
    if known.get('status') == 'done' or (known and not directory.is_dir()):
      raise ValueError(
        f'{results} is there, and the checkpoints in {directory} are gone: to run again would '
        'overwrite the log and the results. Bring them back, or choose another --workdir'
      )


def _parts_in(job: Job) -> pathlib.Path:
  """The directory of the parts that evaluations keep."""
  return job.directory / 'parts'


def _kept(job: Job) -> Kept | None:
  """What keeps parts of answers; None where the method has none, or there is no room."""
  options = job.options
  # Processes decide for themselves what is damaged, and must all compute the same.
  disk = options.parts_disk * _GIB if job.kept and jax.process_count() == 1 else 0.0
  if not isinstance(job.method.predict, Parts) or not (disk or options.parts_memory):
    return None
  config: Any = jax.config  # Its attributes are made as jax is imported.
  facts = {
    'configurations': [configuration(each, job.method) for each in job.experiments],
    'seeds': [[each.seed for each in job.experiments], job.stacked],
    'mesh': [dict(job.layout.mesh.shape), str(job.layout.rules)],
    'environment': environment(),
    'files': dict(options.files),
    # What else decides about the last digits.
    'arithmetic': [
      os.environ.get('XLA_FLAGS'),
      str(config.jax_default_matmul_precision),
      bool(config.jax_enable_x64),
    ],
  }
  identity = hashlib.sha256(json_line(facts).encode()).hexdigest()
  files = PartFiles(_parts_in(job), disk, job.warn) if disk else None
  return Kept(identity, options.parts_memory * _GIB, files)


def _key(job: Job) -> jax.Array:
  """The key of the run, or one for each experiment, on all devices."""
  keys = [jax.random.key_data(jax.random.key(each.seed)) for each in job.experiments]
  data = np.stack(keys)
  data = data if job.stacked else data[0]
  return jax.random.wrap_key_data(place(data, replicated(job.layout)))


def _run_from(
  job: Job,
  steps: Steps,
  frozen: Params,
  checkpoints: Checkpoints,
  compiled: Callable[[], float],
  *,
  state: TrainState,
  position: Position,
) -> TrainState:
  """Runs from a position to the end, and saves the end."""
  last_save, saved = time.monotonic(), position.tick
  compiled_before = position.compile_seconds
  agree = agreement()

  with contextlib.ExitStack() as stack:
    records = tuple(
      stack.enter_context(contextlib.closing(_record(job, i, found.rows)))
      for i, found in enumerate(position.seeds)
    )
    kept = _kept(job)
    reporter = stack.enter_context(
      Reporter(job.experiment, job.method, job.name, job.console, keeping=kept is not None)
    )

    def save(state: TrainState, position: Position) -> None:
      nonlocal last_save, saved
      settle(position)  # No state that is not finite is ever saved.
      position.compilations = compilations(steps, position.compilations)
      position.compile_seconds = compiled_before + compiled()
      position.peak_bytes = max(position.peak_bytes, peak_memory())
      for record in records:
        record.sync()
      if job.kept:  # Else nothing could ever resume from it.
        checkpoints.save(position.tick, state, position)
      last_save, saved = time.monotonic(), position.tick

    def after_batch(state: TrainState, position: Position) -> None:
      due = time.monotonic() - last_save >= job.options.save_every
      stop, due = agree(position.tick, job.stopping(), due)
      boundary = position.at_boundary()
      if boundary or stop or due:
        save(state, position)
      if boundary:
        job.write(state, position, [None] * len(job.experiments))
      if stop:
        if kept is not None:
          kept.settle(every=True)
        raise Stopped(f'stopped at task {position.task}, {position.phase} {position.batch}')

    part = batch_part(job.layout)
    loop = Loop(
      job.experiments, job.method, steps, frozen, part, records, after_batch, reporter, kept,
      _tokens(job, steps), clock=lambda: time.perf_counter() - compiled(),
    )  # fmt: skip
    try:
      state = run_tasks(loop, state, position)
    except NonFiniteLoss as error:
      if not job.kept:
        raise
      where = f'checkpoint {saved} in {job.directory / "checkpoints"}' if saved else 'none yet'
      raise NonFiniteLoss(f'{error}; last good checkpoint: {where}') from None
  return state


def _tokens(job: Job, steps: Steps) -> KeptTokens | None:
  """Tokens below the lowest trained block, where some are kept: of data that all share."""
  if own_data(job.experiments):
    return None
  options, backbone = job.options, job.experiment.backbone
  limit = None if options.tokens_kept is None else options.tokens_kept * _GIB
  lower = lower_of(job.experiment, job.method, limit)
  if not lower.kept:
    return None
  job.console.print(f'computed once per example: {lower}', markup=False, soft_wrap=True)
  run = lambda frozen, x: below_of_batch(backbone, lower.block, frozen, x)
  # Replicated: a shuffled batch may hold any example.
  tokens = jax.jit(
    traced_on(job.layout, run),
    in_shardings=(steps.frozen_shardings, steps.batch_sharding),
    out_shardings=steps.counts_sharding,
  )
  training, tests = rows_of_training(job.experiment, job.method), rows_of_tests(job.experiment)
  return KeptTokens(lower, tokens, training, tests, options.tokens_in)


def _record(job: Job, i: int, rows: int) -> Record | Unwritten:
  if not is_first():
    return Unwritten(rows)
  return Record(job.outputs[i], rows, tuple(job.options.writers))
