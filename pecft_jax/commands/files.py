"""Experiment files, and their functions' parameters as flags."""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Annotated, Any

import docstring_parser
import tyro

from pecft_jax.benchmarks import benchmarks, file_of
from pecft_jax.local import local_path
from pecft_jax.text import unknown

if TYPE_CHECKING:
  from pecft_jax.train import Experiment


def find_experiment(name: str) -> str:
  """The file of an experiment: a path, or the name of a benchmark that comes with the library.

  Raises:
    ValueError: if there is no such file or benchmark.

  >>> find_experiment('split_digits').endswith('split_digits.py')
  True
  """
  if pathlib.Path(name).suffix == '.py':
    return name
  names = benchmarks()
  if name in names:
    return str(file_of(name))
  if pathlib.Path(name).exists():
    raise ValueError(f'an experiment is a Python file, whose name ends in .py; got {name}')
  near = f'{name}.py'
  hint = f'; there is a file {near}' if pathlib.Path(near).is_file() else ''
  raise ValueError(
    f'{unknown("experiment", name, names)}; a file of your own is named with its ending .py{hint}'
  )


def load_experiment(path: str) -> Callable[..., Any]:
  """The function `experiment` of a file.

  Modules beside the file, or in the current folder, can be imported from then on.

  Raises:
    ValueError: if there is no such file or function.
  """
  file = local_path(path)
  if not file.is_file():
    raise ValueError(f'no experiment file at {path}')
  _importable_from(pathlib.Path.cwd(), first=False)
  module = _module_of(file)
  function = getattr(module, 'experiment', None)
  if not callable(function):
    raise ValueError(f'{path} has no function experiment(...) -> Experiment')
  return function


def made(function: Callable[..., Any], values: Mapping[str, Any]) -> 'Experiment':
  """The experiment that the function of a file returns.

  Raises:
    ValueError: if it returns something else.
  """
  from pecft_jax.train import Experiment

  found = function(**values)
  if not isinstance(found, Experiment):
    hint = '; does it lack a return?' if found is None else ''
    raise ValueError(
      'expected experiment(...) to return an Experiment of pecft_jax.train, got '
      f'{type(found).__name__}{hint}'
    )
  return found


def _importable_from(folder: pathlib.Path, *, first: bool) -> None:
  if str(folder) not in sys.path:
    sys.path.insert(0 if first else len(sys.path), str(folder))


def _module_of(file: pathlib.Path) -> types.ModuleType:
  # A benchmark of the library is imported under its module name.
  if file.stem in benchmarks() and file.resolve() == file_of(file.stem).resolve():
    return importlib.import_module(f'pecft_jax.benchmarks.{file.stem}')
  _importable_from(file.resolve().parent, first=True)
  loader = importlib.machinery.SourceFileLoader(file.stem, str(file))
  spec = importlib.util.spec_from_file_location(file.stem, file, loader=loader)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[file.stem] = module
  try:
    # Compiled anew: bytecode on disk is taken for that of a file which was changed within the same
    # second to one of the same length, and a run records the digest of the file.
    exec(loader.source_to_code(file.read_bytes(), str(file)), module.__dict__)
  except SyntaxError as error:
    raise ValueError(f'{error.filename}, line {error.lineno}: {error.msg}') from error
  return module


def parse_flags(
  function: Callable[..., Any], args: Sequence[str], prog: str, own_flags: type
) -> tuple[dict[str, Any], Any]:
  """The arguments of an experiment function, and the command's own flags, from a command line."""
  fields = dataclasses.fields(own_flags)
  keyword = inspect.Parameter.KEYWORD_ONLY
  own = _with_preset(list(inspect.signature(function).parameters.values()), args)
  _check_parameters(own, {field.name for field in fields})
  _check_given(args)
  runs = [inspect.Parameter(f.name, keyword, default=f.default) for f in fields]

  def collect(**values: Any) -> dict[str, Any]:
    return values

  # tyro reads signature, annotations and docstring: those of both, joined.
  collect.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [p.replace(kind=keyword) for p in [*own, *runs]]
  )
  hints = typing.get_type_hints(function, include_extras=True) | typing.get_type_hints(own_flags)
  collect.__annotations__ = {k: _marked(v) for k, v in hints.items() if k != 'return'}
  doc = docstring_parser.parse(function.__doc__ or '')
  helps = {p.arg_name: p.description for p in doc.params} | _field_docs(own_flags)
  lines = [f'  {name}: {" ".join((text or "").split())}' for name, text in helps.items()]
  collect.__doc__ = '\n'.join([doc.short_description or prog, '', 'Args:', *lines])
  values = tyro.cli(collect, args=list(args), prog=prog)
  flags = own_flags(**{f.name: values.pop(f.name) for f in fields})
  return values, flags


def _check_parameters(parameters: Sequence[inspect.Parameter], taken: Set[str]) -> None:
  """Raises ValueError for parameters that cannot be flags."""
  for each in parameters:
    if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
      raise ValueError(
        f'the parameters of experiment(...) are flags: expected names, got *{each.name}'
      )
    if each.name in taken:
      flag = each.name.replace('_', '-')
      raise ValueError(
        f'--{flag} is a flag of pecft itself: rename the parameter {each.name} of experiment(...)'
      )


def _check_given(args: Sequence[str]) -> None:
  """Raises ValueError for a flag without a value, as of a variable that is not set."""
  for word, following in zip(args, [*args[1:], None], strict=False):
    flag, equals, value = word.partition('=')
    value = value if equals else following
    if flag in ('--workdir', '--branch') and value == '':
      raise ValueError(f'{flag} names no directory: the value is empty')
    if flag in ('--workdir', '--branch') and value == 'None':  # Which tyro reads as not given.
      raise ValueError(f'{flag} None names no directory; one of that name is ./None')
    if word == '--rules' and (value is None or value.startswith('--')):
      raise ValueError('--rules needs rules behind it, as in --rules head/kernel$=model,-')


def _with_preset(
  parameters: list[inspect.Parameter], args: Sequence[str]
) -> list[inspect.Parameter]:
  """Parameters whose defaults are those of the preset that `--preset` names, if it does."""
  if 'preset' not in {each.name for each in parameters}:
    return parameters
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument('--preset')
  named = parser.parse_known_args(list(args))[0].preset
  if named is None:
    return parameters
  from pecft_jax.presets import preset

  found = preset(named)
  defaults = {
    'method': found.method,
    'peft': found.peft,
    'head': found.head,
    'wrap': ','.join(found.wrap),
    'epochs': found.epochs,
    'batch_size': found.batch_size,
    'learning_rate': found.learning_rate,
  }
  if found.value_range is not None:  # Presets for texts have neither.
    defaults |= {'views': 'source', 'value_range': 'source'}
  return [each.replace(default=defaults.get(each.name, each.default)) for each in parameters]


def _marked(hint: Any) -> Any:
  """`pecft_jax.catalog.Repeated` as an annotation of tyro."""
  if typing.get_origin(hint) is not typing.Annotated:
    return hint
  plain, *marks = typing.get_args(hint)
  return Annotated[plain, tyro.conf.UseAppendAction] if 'repeated' in marks else hint


def print_own_flags(command: str, own_flags: type) -> None:
  """Prints the flags that a command has for every experiment."""

  def experiment() -> None:
    """Flags for any FILE; `pecft run FILE --help` lists those of its experiment, too."""

  with contextlib.suppress(SystemExit):
    parse_flags(experiment, ['--help'], f'pecft {command} FILE', own_flags)


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
