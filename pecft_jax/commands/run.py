"""`pecft run`."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from pecft_jax.commands.failures import quiet_libraries, room_in, words
from pecft_jax.commands.files import (
  default_workdir,
  find_experiment,
  load_experiment,
  made,
  parse_flags,
)
from pecft_jax.commands.meshes import layout_of, split_of
from pecft_jax.local import local_path, work_directory
from pecft_jax.sources import files_beside

_RESUME = 'The same command resumes.'
_MOST_SEEDS = 1024  # Each has a directory, and a part of the memory.
_STOPPED = 143  # Exit status of a process that SIGTERM ended; used after Ctrl-C, too.


@dataclasses.dataclass(frozen=True)
class RunFlags:
  """Flags of `pecft run` that do not change what is computed."""

  workdir: pathlib.Path | None = None
  """Directory of the run; runs/NAME by default. The same command on it resumes."""
  save_every: float = 60.0
  """Seconds between checkpoints; there is one after each task, too."""
  mesh: str = ''
  """Devices by axis, as in data=4,model=2: batches are sharded over data, layers over model. By
  default the first device alone."""
  fsdp: bool = False
  """Shard weights over the data axis, too; needs --mesh."""
  rules: tuple[str, ...] = ()
  """Sharding rules before all others, as in 'head/kernel$=model,-': the last axes of leaves whose
  path the pattern is found in; with none they stay whole. Needs --mesh."""
  tensorboard: bool = False
  """Write TensorBoard events to WORKDIR/tensorboard."""
  seeds: int = 1
  """Number of seeds to learn side by side in one program: the experiment's, and those after it."""
  keep_tasks: bool = False
  """Keep the checkpoint after each task, to branch from; otherwise the two newest stay."""
  branch: pathlib.Path | None = None
  """Start a new run from this work directory, as it was after task --after-task."""
  after_task: int | None = None
  """Number of tasks that a branch shares with the run that it starts from, from 1."""
  coordinator: str | None = None
  """Be one process of a job: HOST:PORT of process 0, or auto to find all in the environment
  (Cloud TPU, GKE, SLURM, Open MPI)."""
  processes: int | None = None
  """Number of processes of the job; needs --coordinator."""
  accept_changes: bool = False
  """Resume although FILE, or what it imports from beside it, was changed since: say so where the
  change has no part in what is computed. It is recorded."""
  parts_memory: float = 1.0
  """GiB of memory for features that do not change from one evaluation to the next; 0 for none."""
  parts_disk: float = 4.0
  """GiB in WORKDIR for the same, until the run ends: a resumed run has them."""
  no_compile_cache: bool = False
  """Compile all programs again, instead of reading those of earlier runs from the user's cache
  directory (or JAX_COMPILATION_CACHE_DIR)."""
  tokens_kept: float | None = None
  """GiB of tokens below the lowest trained block that are kept, so that the frozen blocks
  there are computed once per example; by default a quarter of this machine's memory, 0: none."""
  tokens_in: pathlib.Path | None = None
  """Folder for files that hold these tokens, instead of memory."""
  process_id: int | None = None
  """Number of this process, from 0; needs --coordinator."""
  debug: bool = False
  """Show the whole traceback of an error."""


def run_file(path: str, args: Sequence[str], console: Console, *, debug: bool = False) -> int:
  from pecft_jax.train.heap import keep_heap

  keep_heap()
  given, path = path, find_experiment(path)
  function = load_experiment(path)
  values, flags = parse_flags(function, args, f'pecft run {given}', RunFlags)
  name = pathlib.Path(path).stem
  side_by_side = f'-seeds={flags.seeds}' if flags.seeds > 1 else ''
  default = default_workdir(name + side_by_side, function, values)
  workdir = work_directory(flags.workdir or default)
  # After the flags, so that --help is quick.
  from pecft_jax.devices.compile_cache import use_compile_cache
  from pecft_jax.devices.processes import ending_together, is_first, join
  from pecft_jax.report import comparison_markdown, write_comparison, write_page
  from pecft_jax.report.read import read_run
  from pecft_jax.report.tables import print_run
  from pecft_jax.train import Stopped

  command = {
    'file': str(local_path(local_path(path).resolve())),
    'arguments': list(args),
    'directory': str(local_path(pathlib.Path.cwd())),
  }
  settings = {'file': name, 'flags': {k: _json(v) for k, v in values.items()}}
  join(flags.coordinator, flags.processes, flags.process_id)
  if not flags.no_compile_cache:
    use_compile_cache()
  if is_first():
    console.print(f'{name} → {workdir}', highlight=False)
  try:
    say = functools.partial(words, debug=debug)
    with quiet_libraries(), ending_together(unless=Stopped, words=say), room_in(workdir):
      dirs = _run_experiment(function, values, flags, workdir, settings, command, console)
  except Stopped as stop:
    if is_first():
      console.print(f'{stop}; saved in {workdir}. {_RESUME}')
    return _STOPPED
  if is_first():
    with room_in(workdir):
      pages = [write_page(directory) for directory in dirs]
      page = pages[0] if len(dirs) == 1 else write_comparison(dirs, workdir / 'report.html')
    if len(dirs) == 1:
      print_run(read_run(workdir), console)
    else:
      console.print(comparison_markdown(dirs), highlight=False, markup=False, soft_wrap=True)
    console.print(f'report: {page}', highlight=False)
  return 0


def _run_experiment(
  function: Callable[..., Any],
  values: dict[str, Any],
  flags: RunFlags,
  workdir: pathlib.Path,
  settings: dict[str, Any],
  command: dict[str, Any],
  console: Console,
) -> list[pathlib.Path]:
  """Runs what the flags ask for; returns the directories of the seeds."""
  from pecft_jax.devices.processes import is_first
  from pecft_jax.train import RunOptions, run, run_seeds, tensorboard

  if not 1 <= flags.seeds <= _MOST_SEEDS:
    raise ValueError(f'expected --seeds of at least 1, at most {_MOST_SEEDS}, got {flags.seeds}')
  if flags.seeds > 1 and flags.tensorboard:
    raise ValueError('--tensorboard shows one seed; run it without --seeds')
  branch = _branch(flags)
  experiment = made(function, values)
  writing = flags.tensorboard and is_first()
  options = RunOptions(
    layout=layout_of(
      flags.mesh, flags.fsdp, flags.rules, experiment.rules, split=split_of(experiment.backbone)
    ),
    save_every=flags.save_every,
    keep_tasks=flags.keep_tasks,
    parts_memory=flags.parts_memory,
    parts_disk=flags.parts_disk,
    branch=branch,
    console=console,
    writers=[tensorboard(workdir / 'tensorboard')] if writing else (),
    config=settings,
    command=command,
    files=files_beside(command['file']),
    accept_changes=flags.accept_changes,
    tokens_kept=flags.tokens_kept,
    tokens_in=None if flags.tokens_in is None else local_path(flags.tokens_in),
  )
  if flags.seeds == 1:
    run(experiment, workdir, options)
    return [workdir]
  seeds = range(experiment.seed, experiment.seed + flags.seeds)
  _check_seeds(function, values, experiment, seeds)
  run_seeds(experiment, seeds, workdir, options)
  return [workdir / f'seed_{seed}' for seed in seeds]


def _branch(flags: RunFlags) -> Any:
  from pecft_jax.workdir.branch import Branch

  if flags.branch is None and flags.after_task is None:
    return None
  if flags.branch is None or flags.after_task is None:
    raise ValueError('--branch DIR and --after-task K go together')
  if flags.after_task < 1:
    raise ValueError(f'--after-task counts tasks from 1, got {flags.after_task}')
  return Branch(flags.branch, flags.after_task)


def _check_seeds(
  function: Callable[..., Any], values: dict[str, Any], experiment: Any, seeds: Sequence[int]
) -> None:
  """Refuses seeds side by side where data, method or training settings depend on the seed."""
  from pecft_jax.train.experiment import configuration

  if values.get('seed') is None:
    return
  flat = lambda found: {**found['identity'], 'method': found['method'], **found['training']}
  last = flat(configuration(made(function, {**values, 'seed': seeds[-1]})))
  differing = sorted(k for k, v in flat(configuration(experiment)).items() if last.get(k) != v)
  if differing:
    raise ValueError(
      f'with another seed this experiment has another {", ".join(differing)}: such seeds cannot '
      'be learned in one program; run them one by one'
    )


def _json(value: Any) -> Any:
  if isinstance(value, tuple | list):
    return [_json(v) for v in value]
  return value if isinstance(value, str | int | float | bool | None) else str(value)
