"""The command `pecft`."""

import argparse
import functools
import os
import sys
from collections.abc import Sequence

from pecft_jax import __version__
from pecft_jax.commands.parsers import WITH_FILE, add_commands

_INTERRUPTED = 130  # As of a process that SIGINT ended.
_NO_READER = 141  # As of one that SIGPIPE ended.


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
  add_commands(add)
  known, rest = parser.parse_known_args(argv)
  if known.command in WITH_FILE and known.file is None and not {'-h', '--help'} & set(rest):
    parser.error(
      f'pecft {known.command} needs a FILE, a Python file with experiment(...), or a benchmark by '
      'name (pecft list benchmarks)'
    )
  if known.command not in WITH_FILE and rest:
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  return _ended(known, rest)


def _ended(known: argparse.Namespace, rest: list[str]) -> int:
  """Runs one command; returns the exit status, of a failure, too."""
  from rich.console import Console

  from pecft_jax.commands.failures import words

  try:
    status = known.call(known, rest, Console())
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


if __name__ == '__main__':
  sys.exit(main())
