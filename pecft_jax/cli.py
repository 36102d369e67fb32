"""The command `pecft`: run an experiment file, list what there is, report on finished runs."""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import docstring_parser
import tyro
from rich.console import Console
from rich.table import Table

_RESUME = 'The same command resumes.'


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
  tensorboard: bool = False
  """Write TensorBoard events to WORKDIR/tensorboard."""


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
    return _report(known.dirs, known.out, known.markdown, console)
  except (ValueError, ArithmeticError) as error:
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
  workdir = flags.workdir or default_workdir(name, function, values)
  # After the flags, so that --help is quick.
  from pecft_jax.report import write_page
  from pecft_jax.report.read import read_run
  from pecft_jax.report.tables import print_run
  from pecft_jax.train.record import tensorboard
  from pecft_jax.train.run import Stopped, run

  writers = (tensorboard(workdir / 'tensorboard'),) if flags.tensorboard else ()
  settings = {'file': name, 'flags': {k: _json(v) for k, v in values.items()}}
  console.print(f'{name} → {workdir}', highlight=False)
  try:
    run(
      function(**values),
      workdir,
      config=settings,
      layout=layout_of(flags.mesh, flags.fsdp),
      save_every=flags.save_every,
      writers=writers,
      console=console,
    )
  except Stopped as stop:
    console.print(f'{stop}; saved in {workdir}. {_RESUME}')
    return 143
  page = write_page(workdir)
  print_run(read_run(workdir), console)
  console.print(f'report: {page}', highlight=False)
  return 0


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
  layout = abstract_layout(axes or {'data': 1}, rules_of(axes, flags.fsdp))
  experiment = function(**values)
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


def layout_of(mesh: str, fsdp: bool) -> Any:
  """The mesh and the sharding rules of the flags; None for the first device alone.

  Raises:
    ValueError: for a mesh that does not fit the devices, or `fsdp` without one.
  """
  from pecft_jax.train import sharding

  axes = parse_mesh(mesh) if mesh else {}
  rules = rules_of(axes, fsdp)
  return sharding.Layout(sharding.make_mesh(axes), rules) if mesh else None


def rules_of(axes: dict[str, int], fsdp: bool) -> tuple[Any, ...]:
  """The sharding rules for a mesh with these axes. Raises ValueError for `fsdp` without one."""
  from pecft_jax.train import sharding

  if fsdp and not axes:
    raise ValueError('--fsdp splits weights over a mesh: give one, as in --mesh data=8')
  rules = sharding.tensor_parallel() if 'model' in axes else ()
  return (*rules, *(sharding.fsdp() if fsdp else ()))


def _json(value: Any) -> Any:
  if isinstance(value, tuple | list):
    return [_json(v) for v in value]
  return value if isinstance(value, str | int | float | bool | None) else str(value)


# --- list and report -----------------------------------------------------------------------------


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

  if markdown:
    print(comparison_markdown(dirs))
    return 0
  page = write_page(dirs[0]) if len(dirs) == 1 else write_comparison(dirs, out)
  console.print(f'report: {page}', highlight=False)
  return 0


if __name__ == '__main__':
  sys.exit(main())
