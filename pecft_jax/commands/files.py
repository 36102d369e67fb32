"""Experiment files, and their functions' parameters as flags."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import docstring_parser
import tyro

from pecft_jax.local import local_path


def load_experiment(path: str) -> Callable[..., Any]:
  """The function `experiment` of a file.

  Raises:
    ValueError: if there is no such file or function.
  """
  file = local_path(path)
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
  function: Callable[..., Any], args: Sequence[str], prog: str, own_flags: type
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


def print_own_flags(command: str, own_flags: type) -> None:
  """Prints the flags that a command has whatever the experiment."""

  def experiment() -> None:
    """Flags for any FILE; `--help` behind a FILE lists those of its experiment, too."""

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
