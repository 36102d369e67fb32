"""The command `pecft`."""

import argparse
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pecft_jax import __version__

_INTERRUPTED = 130  # As of a process that SIGINT ended.
_NO_READER = 141  # As of one that SIGPIPE ended.


def _path(text: str) -> pathlib.Path:
  """A path of the command line. An empty one, as of a variable that is not set, is none."""
  if not text:
    raise argparse.ArgumentTypeError('it names nothing: the value is empty')
  return pathlib.Path(text)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(
    prog='pecft',
    description='Parameter-efficient continual fine-tuning in JAX.',
    allow_abbrev=False,
    epilog='pecft run FILE --help lists the flags of an experiment.',
  )
  parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
  # Accepted before and after a command. No abbreviations: flags of an experiment may share a
  # prefix.
  either = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  either.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                      help='show the whole traceback of an error')  # fmt: skip
  parser.add_argument('--debug', action='store_true', help='show the whole traceback of an error')
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  add = functools.partial(commands.add_parser, parents=[either], allow_abbrev=False)
  run = add('run', help='run or resume an experiment file', add_help=False)
  run.add_argument(
    'file',
    nargs='?',
    help='a Python file with experiment(...) -> Experiment, or the name of a benchmark',
  )
  plan = add('plan', help='what a run would take: memory, FLOPs, time, growth', add_help=False)
  plan.add_argument('file', nargs='?', help='as for run')
  listing = add('list', help='what there is: transforms, methods, ...')
  listing.add_argument('kind', help='peft, methods, presets, benchmarks or backbones')
  reporting = add('report', help='write the page of a run, or compare several')
  reporting.add_argument('dirs', nargs='+', type=_path, help='work directories')
  reporting.add_argument(
    '--out', type=_path, help='the page (default: DIR/report.html; of several, report.html)'
  )
  reporting.add_argument('--markdown', action='store_true', help='print the comparison as Markdown')
  inspecting = add(
    'inspect',
    help='what a work directory holds: checkpoints, their state, and what is damaged',
    description='Changes nothing, and may be used while a run goes on. The exit status is 1 where '
    'something is damaged.',
  )
  inspecting.add_argument('dir', type=_path, help='a work directory')
  inspecting.add_argument('--verify', action='store_true',
                          help='also read all arrays, and check their digests')  # fmt: skip
  inspecting.add_argument('--leaves', action='store_true', help='each leaf with its shape')
  examining = add(
    'doctor',
    help='versions, devices, memory, caches, and what is missing on this machine',
    description='The exit status is 1 where something is broken.',
  )
  for each in (listing, inspecting, examining):
    each.add_argument('--json', action='store_true', help='as JSON')
  exporting = add(
    'export',
    help='save the adapter of a run for another library',
    description='The delta and the classifier that a run had after a task, as an adapter.',
  )
  exporting.add_argument('dir', type=_path, help='a work directory of pecft run')
  exporting.add_argument('out', type=_path, help='a new directory')
  exporting.add_argument('--task', type=int, metavar='T',
                         help='after so many tasks, from 1 (default: the last)')  # fmt: skip
  exporting.add_argument('--format', default='hf-peft',
                         help='hf-peft, for peft.PeftModel (default)')  # fmt: skip
  exporting.add_argument('--seed', type=int, help='which of seeds side by side')
  exporting.add_argument('--file', help='the experiment file, if it is no longer where it was')
  exporting.add_argument('--accept-changes', action='store_true',
                         help='although the experiment file was changed since')  # fmt: skip
  known, rest = parser.parse_known_args(argv)
  if known.command in {'run', 'plan'} and known.file is None and not {'-h', '--help'} & set(rest):
    parser.error(
      f'pecft {known.command} needs a FILE, a Python file with experiment(...), or a benchmark by '
      'name (pecft list benchmarks)'
    )
  if known.command not in {'run', 'plan'} and rest:
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  return _ended(known, rest)


def _ended(known: argparse.Namespace, rest: list[str]) -> int:
  """Runs one command; returns the exit status, of a failure, too."""
  from rich.console import Console

  from pecft_jax.commands.failures import words

  try:
    status = _run(known, rest, Console())
    sys.stdout.flush()
  except BrokenPipeError:
    # The reader closed the pipe, as `head` does: the remaining output is discarded.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _NO_READER
  except KeyboardInterrupt:
    if known.debug:
      raise
    print('interrupted', file=sys.stderr)
    return _INTERRUPTED
  except Exception as error:  # Of any kind, where it is the user's own.
    text = words(error, debug=known.debug)
    if text is None:
      raise
    # Not wrapped: paths are copied from here.
    Console(stderr=True).print(text, style='red', highlight=False, markup=False, soft_wrap=True)
    return 1
  return status


def _run(known: argparse.Namespace, rest: list[str], console: Any) -> int:
  """Runs one command; each is imported where it is run, so that `--help` is quick."""
  match known.command:
    case 'run':
      from pecft_jax.commands.run import RunFlags, run_file

      run = functools.partial(run_file, debug=known.debug)
      return _with_file(known, rest, console, RunFlags, run)
    case 'plan':
      from pecft_jax.commands.plan import PlanFlags, plan_file

      return _with_file(known, rest, console, PlanFlags, plan_file)
    case 'list':
      from pecft_jax.commands.look import list_names

      return list_names(known.kind, known.json, console)
    case 'inspect':
      from pecft_jax.commands.look import inspect_directory

      return inspect_directory(known.dir, known.verify, known.leaves, known.json, console)
    case 'doctor':
      from pecft_jax.commands.doctor import doctor

      return doctor(known.json, console)
    case 'export':
      from pecft_jax.commands.export import export

      return export(
        known.dir, known.out, known.task, known.format, known.seed, known.file,
        known.accept_changes, console,
      )  # fmt: skip
    case _:
      from pecft_jax.commands.look import report

      return report(known.dirs, known.out, known.markdown, console)


def _with_file(
  known: argparse.Namespace, rest: list[str], console: Any, flags: type, command: Callable[..., int]
) -> int:
  """A command on an experiment file; without one, the help of its own flags."""
  from pecft_jax.commands.files import print_own_flags

  if known.file is None:
    print_own_flags(known.command, flags)
    return 0
  return command(known.file, rest, console)


if __name__ == '__main__':
  sys.exit(main())
