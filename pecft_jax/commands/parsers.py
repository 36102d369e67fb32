"""The sub-commands of `pecft`: their flags, and what runs them.

Each command is imported where it is run, so that `--help` is quick.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any

Add = Callable[..., argparse.ArgumentParser]
Call = Callable[[argparse.Namespace, list[str], Any], int]  # (flags, others, console) -> status

# Commands on an experiment file, which has flags, too.
WITH_FILE = frozenset({'run', 'plan', 'params'})


def add_commands(add: Add) -> None:
  """Adds all commands; each sets `call`, which runs it.

  Args:
    add: makes the parser of a command, as `add_parser` of argparse does.
  """
  for each in _COMMANDS:
    each(add)


def _run(add: Add) -> None:
  parser = add('run', help='run or resume an experiment file', add_help=False)
  parser.add_argument(
    'file',
    nargs='?',
    help='a Python file with experiment(...) -> Experiment, or the name of a benchmark',
  )

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.run import RunFlags, run_file

    run = functools.partial(run_file, debug=known.debug)
    return _with_file(known, rest, console, RunFlags, run)

  parser.set_defaults(call=call)


def _plan(add: Add) -> None:
  parser = add('plan', help='what a run would take: memory, FLOPs, time, growth', add_help=False)
  parser.add_argument('file', nargs='?', help='as for run')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.plan import PlanFlags, plan_file

    return _with_file(known, rest, console, PlanFlags, plan_file)

  parser.set_defaults(call=call)


def _params(add: Add) -> None:
  parser = add('params', help='the arrays of an experiment: trained or not, bytes', add_help=False)
  parser.add_argument('file', nargs='?', help='as for run')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.params import ParamsFlags, params_of_file

    return _with_file(known, rest, console, ParamsFlags, params_of_file)

  parser.set_defaults(call=call)


def _list(add: Add) -> None:
  parser = add('list', help='what there is: transforms, methods, ...')
  parser.add_argument('kind', help='peft, methods, presets, benchmarks or backbones')
  parser.add_argument('--json', action='store_true', help='as JSON')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.look import list_names

    return list_names(known.kind, known.json, console)

  parser.set_defaults(call=call)


def _report(add: Add) -> None:
  parser = add('report', help='write the page of a run, or compare several')
  parser.add_argument('dirs', nargs='+', type=_path, help='work directories')
  parser.add_argument(
    '--out', type=_path, help='the page (default: DIR/report.html; of several, report.html)'
  )
  parser.add_argument('--markdown', action='store_true', help='print the comparison as Markdown')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.look import report

    return report(known.dirs, known.out, known.markdown, console)

  parser.set_defaults(call=call)


def _inspect(add: Add) -> None:
  parser = add(
    'inspect',
    help='what a work directory holds: checkpoints, their state, and what is damaged',
    description='Changes nothing, and may be used while a run goes on. The exit status is 1 where '
    'something is damaged.',
  )
  parser.add_argument('dir', type=_path, help='a work directory')
  parser.add_argument(
    '--verify', action='store_true', help='also read all arrays, and check their digests'
  )
  parser.add_argument('--leaves', action='store_true', help='each leaf with its shape')
  parser.add_argument('--json', action='store_true', help='as JSON')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.look import inspect_directory

    return inspect_directory(known.dir, known.verify, known.leaves, known.json, console)

  parser.set_defaults(call=call)


def _doctor(add: Add) -> None:
  parser = add(
    'doctor',
    help='versions, devices, memory, caches, and what is missing on this machine',
    description='The exit status is 1 where something is broken.',
  )
  parser.add_argument('--json', action='store_true', help='as JSON')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.doctor import doctor

    return doctor(known.json, console)

  parser.set_defaults(call=call)


def _export(add: Add) -> None:
  parser = add(
    'export',
    help='save what a run has learned, for another machine or library',
    description='Writes what a run had learned after a task: as a bundle, which pecft predict and '
    'load_bundle read; as a StableHLO program, which runs without this library; or as an adapter '
    "of Hugging Face's peft.",
  )
  parser.add_argument('dir', type=_path, help='a work directory of pecft run, or a bundle')
  parser.add_argument('out', type=_path, help='a new directory')
  parser.add_argument(
    '--format',
    default='hf-peft',
    help='hf-peft, for peft.PeftModel (default); bundle or stablehlo, which take any method',
  )
  parser.add_argument(
    '--no-weights', action='store_true', help='leave the weights of the backbone out of a bundle'
  )
  _add_which(parser, '--task')

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.export import export

    return export(_which(known), known.out, known.format, not known.no_weights, console)

  parser.set_defaults(call=call)


def _predict(add: Add) -> None:
  parser = add(
    'predict',
    help='what a run says of images or texts, as CSV or JSON lines',
    description='Writes the label and its probability for each example, in the order given. A file '
    'that is no image, or of another mode, is refused before anything is written.',
  )
  parser.add_argument('dir', type=_path, help='a work directory of pecft run, or a bundle')
  parser.add_argument(
    'inputs',
    nargs='+',
    metavar='INPUT',
    type=_text,
    help='images, folders of images, .npz files with images; for a backbone of texts, files with a '
    'text on each line, .csv or .jsonl files with a column text, or - for standard input',
  )
  parser.add_argument('--out', type=_path, help='the file (default: standard output)')
  parser.add_argument('--format', help='csv (default) or jsonl; by the suffix of --out')
  parser.add_argument(
    '--top', type=int, default=1, metavar='N', help='the N most probable classes (default: 1)'
  )
  _add_reading(parser)
  _add_which(parser)

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.predict import predict

    return predict(
      _which(known),
      known.inputs,
      reading=_reading(known),
      out=known.out,
      form=known.format,
      top=known.top,
      batch_size=known.batch_size,
    )

  parser.set_defaults(call=call)


def _evaluate(add: Add) -> None:
  parser = add(
    'evaluate',
    help='the accuracy of a run on another test set',
    description='Classes are matched by name, and predicted among all that were learned. Prints '
    'the accuracy, that of each class, and which classes are taken for which.',
  )
  parser.add_argument('dir', type=_path, help='a work directory of pecft run, or a bundle')
  parser.add_argument(
    '--data',
    type=_path,
    required=True,
    help='a folder with one folder of images per class, a .csv or .jsonl file with the columns '
    'path (or text) and label, or an .npz file',
  )
  parser.add_argument('--split', help='only rows of a table with this split, such as test')
  parser.add_argument('--json', action='store_true', help='as JSON')
  parser.add_argument('--out', type=_path, help='also write the JSON to this file')
  _add_reading(parser)
  _add_which(parser)

  def call(known: argparse.Namespace, rest: list[str], console: Any) -> int:
    from pecft_jax.commands.evaluate import evaluate

    return evaluate(
      _which(known),
      known.data,
      reading=_reading(known),
      split=known.split,
      as_json=known.json,
      out=known.out,
      batch_size=known.batch_size,
      console=console,
    )

  parser.set_defaults(call=call)


_COMMANDS = (_run, _plan, _params, _list, _report, _inspect, _doctor, _predict, _evaluate, _export)


def _add_reading(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say how files become inputs."""
  parser.add_argument(
    '--batch-size', type=int, default=64, metavar='N', help='examples at a time (default: 64)'
  )
  parser.add_argument(
    '--convert',
    action='store_true',
    help='take images of other modes: grey for colours, colours for grey, transparency, 16 bits',
  )
  parser.add_argument(
    '--tokenizer', type=_path, help='a tokenizer.json, for a backbone that reads texts'
  )
  parser.add_argument(
    '--cut', action='store_true', help='cut texts that are too long, instead of refusing them'
  )


def _reading(known: argparse.Namespace) -> Callable[[Any], Any]:
  """Input specification -> how files become inputs."""

  def reading(spec: Any) -> Any:
    from pecft_jax.commands.examples import Reading

    return Reading(spec, known.convert, known.tokenizer, known.cut)

  return reading


def _add_which(parser: argparse.ArgumentParser, *after_task: str) -> None:
  """Adds the flags that say which learner of a directory is meant."""
  parser.add_argument(
    '--after-task',
    *after_task,
    dest='after_task',
    type=int,
    metavar='K',
    help='as it was after so many tasks, from 1 (default: the last with a checkpoint)',
  )
  parser.add_argument('--seed', type=int, help='which of seeds side by side')
  parser.add_argument(
    '--weights', type=_path, help='the weights of the backbone, if they have moved'
  )
  parser.add_argument(
    '--file',
    help='the experiment file, where what the run recorded is incomplete and the file has moved',
  )
  parser.add_argument(
    '--accept-changes', action='store_true', help='although the experiment file was changed since'
  )


def _which(known: argparse.Namespace) -> Any:
  from pecft_jax.commands.learned import Which

  return Which(
    known.dir, known.after_task, known.seed, known.weights, known.file, known.accept_changes
  )


def _path(text: str) -> pathlib.Path:
  """A path of the command line. An empty one, as of a variable that is not set, is none."""
  if not text:
    raise argparse.ArgumentTypeError('it names nothing: the value is empty')
  return pathlib.Path(text)


def _text(text: str) -> str:
  _path(text)
  return text


def _with_file(
  known: argparse.Namespace, rest: list[str], console: Any, flags: type, command: Callable[..., int]
) -> int:
  """A command on an experiment file; without one, the help of its own flags."""
  from pecft_jax.commands.files import print_own_flags

  if known.file is None:
    print_own_flags(known.command, flags)
    return 0
  return command(known.file, rest, console)
