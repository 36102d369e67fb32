"""The command `pecft`: run an experiment file, list what there is, report on runs, inspect them."""

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import inspect
import json
import logging
import pathlib
import re
import shutil
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import docstring_parser
import tyro
from rich.console import Console
from rich.table import Table

_RESUME = 'The same command resumes.'
_STOPPED = 143  # As of a process that SIGTERM ended, after Ctrl-C, too.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class RunFlags:
  """Flags of `pecft run` that do not change what is computed."""

  workdir: pathlib.Path | None = None
  """Directory of the run; runs/NAME by default. The same command on it resumes."""
  save_every: float = 60.0
  """Seconds between checkpoints; there is one after each task, too."""
  mesh: str = ''
  """Devices by axis, as in data=4,model=2: batches are split over data, layers over model. By
  default the first device alone."""
  fsdp: bool = False
  """Split weights over the data axis, too; needs --mesh."""
  rules: tuple[str, ...] = ()
  """Sharding rules before all others, as in 'head/kernel$=model,-': the last axes of leaves whose
  path the pattern is found in; with none they stay whole. Needs --mesh."""
  tensorboard: bool = False
  """Write TensorBoard events to WORKDIR/tensorboard."""
  seeds: int = 1
  """Learn so many seeds side by side in one program: the experiment's, and those after it."""
  keep_tasks: bool = False
  """Keep the checkpoint after each task, to branch from; otherwise the two newest stay."""
  branch: pathlib.Path | None = None
  """Start a new run from this work directory, as it was after task --after-task."""
  after_task: int | None = None
  """Number of tasks that a branch shares with the run that it leaves, from 1."""
  coordinator: str | None = None
  """Be one process of a job: HOST:PORT of process 0, or auto to find all in the environment
  (Cloud TPU, GKE, SLURM, Open MPI)."""
  processes: int | None = None
  """Number of processes of the job; needs --coordinator."""
  process_id: int | None = None
  """Number of this process, from 0; needs --coordinator."""


@dataclasses.dataclass(frozen=True)
class PlanFlags:
  """Flags of `pecft plan`: the devices that it is for."""

  mesh: str = ''
  """Devices by axis, as in data=4,model=2, none of which need be there; one by default."""
  fsdp: bool = False
  """Split weights over the data axis, too; needs --mesh."""
  chip: str = ''
  """One of v4, v5e, v5p, v6e (TPUs), a100, h100, h200; all of them by default."""
  frozen_dtype: Literal['', 'float32', 'bfloat16', 'float16'] = ''
  """In which the weights of the backbone are stored; as the experiment loads them by default."""
  utilisation: float = 0.5
  """Share of a chip's roofline that is assumed to be reached."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(
    prog='pecft',
    description='Parameter-efficient continual fine-tuning in JAX.',
    epilog='pecft run FILE --help lists the flags of an experiment.',
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  run = commands.add_parser('run', help='run or resume an experiment file', add_help=False)
  run.add_argument('file', nargs='?', help='a Python file with experiment(...) -> Experiment')
  plan = commands.add_parser(
    'plan', help='what a run would take: memory, FLOPs, time, growth', add_help=False
  )
  plan.add_argument('file', nargs='?', help='as for run')
  listing = commands.add_parser('list', help='what there is: transforms, methods, ...')
  listing.add_argument('kind', help='peft, methods, benchmarks or backbones')
  listing.add_argument('--json', action='store_true', help='as JSON')
  report = commands.add_parser('report', help='write the page of a run, or compare several')
  report.add_argument('dirs', nargs='+', type=pathlib.Path, help='work directories')
  report.add_argument('--out', type=pathlib.Path, default=pathlib.Path('report.html'),
                      help='page of a comparison (default: report.html)')  # fmt: skip
  report.add_argument('--markdown', action='store_true', help='print the comparison as Markdown')
  inspecting = commands.add_parser(
    'inspect',
    help='what a work directory holds: checkpoints, their state, and what is damaged',
    description='Changes nothing, and may be used while a run goes on. The exit status is 1 where '
    'something is damaged.',
  )
  inspecting.add_argument('dir', type=pathlib.Path, help='a work directory')
  inspecting.add_argument('--verify', action='store_true',
                          help='also read all arrays, and check their digests')  # fmt: skip
  inspecting.add_argument('--leaves', action='store_true', help='each leaf with its shape')
  inspecting.add_argument('--json', action='store_true', help='as JSON')
  known, rest = parser.parse_known_args(argv)
  console = Console()
  try:
    if known.command in {'run', 'plan'}:
      if known.file is None:
        print(f'usage: pecft {known.command} FILE [--flag value ...]')
        return 0 if {'-h', '--help'} & set(rest) else 2
      command = {'run': _run, 'plan': _plan}[known.command]
      return command(known.file, rest, console)
    if rest:
      parser.error(f'unrecognized arguments: {" ".join(rest)}')
    if known.command == 'list':
      return _list(known.kind, known.json, console)
    if known.command == 'inspect':
      return _inspect(known.dir, known.verify, known.leaves, known.json, console)
    return _report(known.dirs, known.out, known.markdown, console)
  except (ValueError, ArithmeticError, OSError) as error:
    Console(stderr=True).print(f'error: {error}', style='red', highlight=False, markup=False)
    return 1


# --- run ---------------------------------------------------------------------------------------


def load_experiment(path: str) -> Callable[..., Any]:
  """The function `experiment` of a file.

  Raises:
    ValueError: if there is no such file or function.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f'no experiment file at {path}')
  # So that an experiment may import what lies beside it.
  sys.path.insert(0, str(file.resolve().parent))
  spec = importlib.util.spec_from_file_location(file.stem, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[file.stem] = module
  spec.loader.exec_module(module)
  function = getattr(module, 'experiment', None)
  if not callable(function):
    raise ValueError(f'{path} has no function experiment(...) -> Experiment')
  return function


def parse_flags(
  function: Callable[..., Any], args: Sequence[str], prog: str, own_flags: Any = RunFlags
) -> tuple[dict[str, Any], Any]:
  """The arguments of an experiment function, and the command's own flags, from a command line."""
  fields = dataclasses.fields(own_flags)
  keyword = inspect.Parameter.KEYWORD_ONLY
  own = list(inspect.signature(function).parameters.values())
  runs = [inspect.Parameter(f.name, keyword, default=f.default) for f in fields]

  def collect(**values: Any) -> dict[str, Any]:
    return values

  # tyro reads signature, annotations and docstring: those of both, joined.
  collect.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [p.replace(kind=keyword) for p in [*own, *runs]]
  )
  hints = {**typing.get_type_hints(function), **typing.get_type_hints(own_flags)}
  collect.__annotations__ = {k: v for k, v in hints.items() if k != 'return'}
  doc = docstring_parser.parse(function.__doc__ or '')
  helps = {p.arg_name: p.description for p in doc.params} | _field_docs(own_flags)
  lines = [f'  {name}: {" ".join((text or "").split())}' for name, text in helps.items()]
  collect.__doc__ = '\n'.join([doc.short_description or prog, '', 'Args:', *lines])
  values = tyro.cli(collect, args=list(args), prog=prog)
  flags = own_flags(**{f.name: values.pop(f.name) for f in fields})
  return values, flags


def _field_docs(cls: type) -> dict[str, str]:
  source = inspect.getsource(cls)
  return dict(re.findall(r'^  (\w+):[^\n]*\n  """(.*?)"""', source, re.MULTILINE | re.DOTALL))


def default_workdir(
  name: str, function: Callable[..., Any], values: dict[str, Any]
) -> pathlib.Path:
  """`runs/NAME`, with the flags that are not at their default: a directory of its own for each."""
  parameters = inspect.signature(function).parameters
  changed = {k: v for k, v in values.items() if v != parameters[k].default}
  text = '-'.join(f'{k}={v}' for k, v in changed.items())
  text = re.sub(r'[^\w=.,:-]+', '_', text)
  if len(text) > 80:
    text = hashlib.sha256(text.encode()).hexdigest()[:12]
  return pathlib.Path('runs') / (f'{name}-{text}' if text else name)


def _run(path: str, args: Sequence[str], console: Console) -> int:
  from pecft_jax.train.heap import keep_heap

  keep_heap()
  function = load_experiment(path)
  values, flags = parse_flags(function, args, f'pecft run {path}')
  name = pathlib.Path(path).stem
  side_by_side = f'-seeds={flags.seeds}' if flags.seeds > 1 else ''
  workdir = flags.workdir or default_workdir(name + side_by_side, function, values)
  # After the flags, so that --help is quick.
  from pecft_jax.report import comparison_markdown, write_comparison, write_page
  from pecft_jax.report.read import read_run
  from pecft_jax.report.tables import print_run
  from pecft_jax.train import Stopped
  from pecft_jax.train.processes import ending_together, is_first, join

  settings = {'file': name, 'flags': {k: _json(v) for k, v in values.items()}}
  join(flags.coordinator, flags.processes, flags.process_id)
  if is_first():
    console.print(f'{name} → {workdir}', highlight=False)
  try:
    with _quiet_libraries(), ending_together(unless=Stopped), _room_in(workdir):
      dirs = _run_experiment(function, values, flags, workdir, settings, console)
  except Stopped as stop:
    if is_first():
      console.print(f'{stop}; saved in {workdir}. {_RESUME}')
    return _STOPPED
  if is_first():
    for directory in dirs:
      page = write_page(directory)
    if len(dirs) == 1:
      print_run(read_run(workdir), console)
    else:
      page = write_comparison(dirs, workdir / 'report.html')
      console.print(comparison_markdown(dirs), highlight=False, markup=False)
    console.print(f'report: {page}', highlight=False)
  return 0


def _run_experiment(
  function: Callable[..., Any],
  values: dict[str, Any],
  flags: RunFlags,
  workdir: pathlib.Path,
  settings: dict[str, Any],
  console: Console,
) -> list[pathlib.Path]:
  """Runs what the flags ask for; returns the directories of the seeds."""
  from pecft_jax.train import run, run_seeds, tensorboard
  from pecft_jax.train.processes import is_first

  how: dict[str, Any] = {
    'config': settings,
    'save_every': flags.save_every,
    'keep_tasks': flags.keep_tasks,
    'branch': _branch(flags),
    'console': console,
  }
  if flags.seeds < 1:
    raise ValueError(f'expected --seeds of at least 1, got {flags.seeds}')
  if flags.seeds > 1 and flags.tensorboard:
    raise ValueError('--tensorboard shows one seed; run it without --seeds')
  experiment = function(**values)
  how['layout'] = layout_of(flags.mesh, flags.fsdp, flags.rules, experiment.rules)
  if flags.seeds == 1:
    writing = flags.tensorboard and is_first()
    writers = [tensorboard(workdir / 'tensorboard')] if writing else []
    run(experiment, workdir, writers=writers, **how)
    return [workdir]
  seeds = range(experiment.seed, experiment.seed + flags.seeds)
  _check_seeds(function, values, experiment, seeds)
  run_seeds(experiment, seeds, workdir, **how)
  return [workdir / f'seed_{seed}' for seed in seeds]


def _branch(flags: RunFlags) -> Any:
  from pecft_jax.train.branch import Branch

  if flags.branch is None and flags.after_task is None:
    return None
  if flags.branch is None or flags.after_task is None:
    raise ValueError('--branch DIR and --after-task K go together')
  return Branch(flags.branch, flags.after_task)


def _check_seeds(
  function: Callable[..., Any], values: dict[str, Any], experiment: Any, seeds: Sequence[int]
) -> None:
  """Refuses seeds side by side where one by one they would learn different things."""
  from pecft_jax.train.experiment import describe

  if values.get('seed') is None:
    return
  last = describe(function(**{**values, 'seed': seeds[-1]}))
  differing = sorted(k for k, v in describe(experiment).items() if last.get(k) != v)
  if differing:
    raise ValueError(
      f'with another seed this experiment has another {", ".join(differing)}: such seeds cannot '
      'be learnt in one program; run them one by one'
    )


@contextlib.contextmanager
def _room_in(workdir: pathlib.Path) -> Iterator[None]:
  """Says of a full disk what to do."""
  try:
    yield
  except OSError as error:
    if error.errno not in _NO_ROOM:
      raise
    free = shutil.disk_usage(workdir).free
    raise OSError(
      f'{error.filename or workdir}: {error.strerror} ({free:,} bytes are free there). What was '
      'saved is not lost: once there is room, the same command resumes'
    ) from error


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
  """Keeps from the terminal what orbax logs of errors that it raises, too: pages of traces."""
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels, shown = [logger.level for logger in loggers], sys.unraisablehook

  def show(error: Any) -> None:
    # Writes of other arrays, which nobody waits for once one has failed.
    if str(error.exc_value) != 'Event loop is closed':
      shown(error)

  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  sys.unraisablehook = show
  failed = False
  try:
    yield
  except OSError:
    failed = True  # Those writes end whenever they do, and this process with them.
    raise
  finally:
    if not failed:
      sys.unraisablehook = shown
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# --- plan ---------------------------------------------------------------------------------------


def _plan(path: str, args: Sequence[str], console: Console) -> int:
  function = load_experiment(path)
  values, flags = parse_flags(function, args, f'pecft plan {path}', PlanFlags)
  from pecft_jax.plan import CHIPS, abstract_layout, find_chip, plan_experiment
  from pecft_jax.plan.page import print_plan
  from pecft_jax.plan.roofline import check_utilisation

  check_utilisation(flags.utilisation)
  chips = [find_chip(flags.chip)] if flags.chip else list(CHIPS.values())
  axes = parse_mesh(flags.mesh) if flags.mesh else {}
  if flags.fsdp and not axes:
    raise ValueError('--fsdp says how to use a mesh: give one, as in --mesh data=8')
  experiment = function(**values)
  rules = rules_of(axes, flags.fsdp, own=experiment.rules) if axes else ()
  layout = abstract_layout(axes or {'data': 1}, rules)
  found = plan_experiment(experiment, layout, flags.frozen_dtype or None)
  grown = _growth(function, values, experiment)
  print_plan(found, chips, utilisation=flags.utilisation, growth=grown, console=console)
  return 0


def _growth(
  function: Callable[..., Any], values: dict[str, Any], experiment: Any
) -> dict[int, str]:
  """What is carried, in words, with room for 1, 10 and 100 tasks and for those there are."""
  from pecft_jax.plan import carried_bytes
  from pecft_jax.plan.page import amount

  room = lambda each: carried_bytes(each.method, each.frozen)
  own = experiment.method.capacity.tasks
  exact = {own: room(experiment)}
  for tasks in (1, 10, 100) if 'tasks' in values else ():
    # Data need not be divisible into so many tasks.
    with contextlib.suppress(ValueError):
      exact.setdefault(tasks, room(function(**{**values, 'tasks': tasks})))
  text = {tasks: amount(size, 'B') for tasks, size in exact.items()}
  if len(exact) > 1:
    low, high = min(exact), max(exact)
    each = (exact[high] - exact[low]) / (high - low)
    for tasks in {1, 10, 100} - set(exact):
      line = exact[low] + each * (tasks - low)
      text[tasks] = f'{amount(line, "B")}, along the line through {low} and {high}'
  return dict(sorted(text.items()))


def parse_mesh(text: str) -> dict[str, int]:
  """`data=4,model=2` to sizes by axis. Raises ValueError for anything else."""
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    if not axis.strip() or not size.strip().isdigit():
      raise ValueError(f'expected a mesh as data=4,model=2, got {text!r}')
    sizes[axis.strip()] = int(size)
  return sizes


def layout_of(mesh: str, fsdp: bool, written: Sequence[str] = (), own: Sequence[Any] = ()) -> Any:
  """The mesh and the sharding rules of the flags; None for the first device alone.

  Args:
    mesh: as in `data=4,model=2`, or empty.
    fsdp: whether weights are split over `data`.
    written: rules of the command line, before all others.
    own: rules of the experiment, before the tables; of no use without a mesh.

  Raises:
    ValueError: for a mesh that does not fit the devices, or other flags without one.
  """
  from pecft_jax.train import sharding

  if not mesh:
    for flag, given in {'fsdp': fsdp, 'rules': written}.items():
      if given:
        raise ValueError(f'--{flag} says how to use a mesh: give one, as in --mesh data=8')
    return None
  axes = parse_mesh(mesh)
  return sharding.Layout(sharding.make_mesh(axes), rules_of(axes, fsdp, written, own))


def rules_of(
  axes: dict[str, int], fsdp: bool, written: Sequence[str] = (), own: Sequence[Any] = ()
) -> tuple[Any, ...]:
  """The table of rules for a mesh with these axes; other arguments as those of `layout_of`."""
  from pecft_jax.train import rules

  tables = [rules.split_memory('data', 'model' if 'model' in axes else None)]
  tables += [rules.tensor_parallel('model', 'data' if fsdp else None)] if 'model' in axes else []
  tables += [rules.fsdp()] if fsdp else []
  return (*map(rules.read_rule, written), *own, *(rule for each in tables for rule in each))


def _json(value: Any) -> Any:
  if isinstance(value, tuple | list):
    return [_json(v) for v in value]
  return value if isinstance(value, str | int | float | bool | None) else str(value)


# --- list, report and inspect --------------------------------------------------------------------


def _list(kind: str, as_json: bool, console: Console) -> int:
  from pecft_jax.catalog import listing

  entries = listing(kind)
  if as_json:
    print(json.dumps(entries, indent=1))
    return 0
  table = Table(show_header=False, box=None, padding=(0, 2))
  for name, line in entries.items():
    table.add_row(f'[bold]{name}', line)
  console.print(table)
  return 0


def _report(
  dirs: Sequence[pathlib.Path], out: pathlib.Path, markdown: bool, console: Console
) -> int:
  from pecft_jax.report import comparison_markdown, write_comparison, write_page

  # A run of several seeds stands for the directories of all of them.
  dirs = [each for path in dirs for each in sorted(path.glob('seed_*')) or [path]]
  if markdown:
    print(comparison_markdown(dirs))
    return 0
  page = write_page(dirs[0]) if len(dirs) == 1 else write_comparison(dirs, out)
  console.print(f'report: {page}', highlight=False)
  return 0


def _inspect(
  directory: pathlib.Path, arrays: bool, leaves: bool, as_json: bool, console: Console
) -> int:
  import jax

  from pecft_jax.report.inspected import print_inspected, problems_of
  from pecft_jax.train.inspection import inspect_run

  # An accelerator may be in use by the very run that is looked at.
  jax.config.update('jax_platforms', 'cpu')
  with _quiet_libraries():
    facts = inspect_run(directory, arrays=arrays)
  if as_json:
    print(json.dumps(facts, indent=1))
  else:
    print_inspected(facts, console, leaves=leaves)
  return 1 if problems_of(facts) else 0


if __name__ == '__main__':
  sys.exit(main())
