"""What a function is, as JSON: its name, and a digest of its source and of all that it reads.

Functions of the libraries whose versions `pecft_jax.environment` records count by name alone, so
that an upgrade of a library is no other configuration.
"""

import ast
import dis
import functools
import hashlib
import inspect
import json
import pathlib
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

# Packages whose versions are part of the environment of a run, with Python and what it brings.
PACKAGES = {  # By the name that is imported, the name that is installed.
  'pecft_jax': 'pecft_jax',
  'jax': 'jax',
  'jaxlib': 'jaxlib',
  'flax': 'flax',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
  'numpy': 'numpy',
}


def sha256_of_json(value: Any) -> str:
  """The first 16 hex digits of the sha256 of a JSON value, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def qualified_name(thing: Any) -> str:
  """`module.name` of a function or a class.

  >>> import math
  >>> qualified_name(math.sqrt)
  'math.sqrt'
  """
  name = getattr(thing, '__qualname__', None) or getattr(thing, '__name__', None)
  return f'{getattr(thing, "__module__", None) or "builtins"}.{name}'


def counts_by_name(thing: Any) -> bool:
  """Whether a function or class is found under its name in a library whose version is recorded."""
  root = (getattr(thing, '__module__', None) or 'builtins').partition('.')[0]
  known = root in PACKAGES or root in sys.stdlib_module_names
  return known and '<' not in qualified_name(thing)


def is_library(thing: Any) -> bool:
  """Whether the source of a function comes with a library whose version is recorded."""
  root = (getattr(thing, '__module__', None) or '').partition('.')[0]
  return root in PACKAGES or root in sys.stdlib_module_names


def source_sha256(thing: Any) -> str:
  """The first 16 hex digits of the sha256 of a function's or class's source text.

  Where there is no source (a prompt, generated code) the compiled code stands for it.
  """
  code = getattr(thing, '__code__', None)
  text = _source(thing) if code is None else _source_of_code(code, thing)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_beside(path: str | pathlib.Path) -> dict[str, str]:
  """The sha256 of a Python file, and of all that it imports from its folder or below, by name.

  Found in the text of the files, so imports inside functions count, and those that are made up
  while running (`importlib.import_module(name)`) do not.

  Args:
    path: of the file.

  Returns:
    Hex digests by the path from the file's folder, as `{'run.py': ..., 'parts/model.py': ...}`.
  """
  file = pathlib.Path(path).resolve()
  folder, found, due = file.parent, {}, [file]
  while due:
    current = due.pop()
    name = current.relative_to(folder).as_posix()
    if name in found:
      continue
    content = current.read_bytes()
    found[name] = hashlib.sha256(content).hexdigest()
    try:
      tree = ast.parse(content)
    except SyntaxError:  # Python says so where it is imported.
      continue
    for module in _imports(tree, current.relative_to(folder).parts[:-1]):
      if module[0] not in PACKAGES:
        due += _files_of(folder, module)
  return dict(sorted(found.items()))


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
  """The dotted names that a file may import, in parts; `package` is the folder it lies in."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (tuple(alias.name.split('.')) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      above = package[: len(package) - node.level + 1] if node.level else ()
      module = (*above, *(node.module.split('.') if node.module else ()))
      yield from (name for alias in node.names if (name := (*module, alias.name)))


def _files_of(folder: pathlib.Path, module: tuple[str, ...]) -> Iterator[pathlib.Path]:
  """The files below a folder that importing a module of this name would run."""
  for end in range(1, len(module) + 1):
    place = folder.joinpath(*module[:end])
    for file in (place / '__init__.py', place.with_name(place.name + '.py')):
      if file.is_file():
        yield file


def globals_read(function: types.FunctionType) -> dict[str, Any]:
  """The module's names that a function reads, with their values; built-in names are left out."""
  names = sorted(set(_global_names(function.__code__)))
  return {n: function.__globals__[n] for n in names if n in function.__globals__}


def closed_over(function: types.FunctionType) -> dict[str, Any]:
  """What a function reads of the functions around it, and its defaults, by name."""
  found: dict[str, Any] = dict(function.__kwdefaults__ or {})
  code, defaults = function.__code__, function.__defaults__ or ()
  arguments = code.co_varnames[: code.co_argcount]
  found |= dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
  for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
    try:
      found[name] = cell.cell_contents
    except ValueError:  # Of a name that is bound later.
      found[name] = None
  return dict(sorted(found.items()))


@functools.cache
def _source_of_code(code: types.CodeType, function: Any) -> str:
  return _lambda(code, function) if code.co_name == '<lambda>' else _source(function)


def _source(thing: Any) -> str:
  try:
    return textwrap.dedent(inspect.getsource(thing))
  except (OSError, TypeError):
    return '\n'.join(_compiled(thing.__code__)) if hasattr(thing, '__code__') else repr(type(thing))


def _lambda(code: types.CodeType, function: Any) -> str:
  """The text of one lambda, of several on a line, too."""
  try:
    lines, _ = inspect.findsource(function)
    tree = ast.parse(''.join(lines))
  except (OSError, SyntaxError):
    return '\n'.join(_compiled(code))
  starts = {place[:1] + place[2:3] for place in code.co_positions() if None not in place}
  inside = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Lambda) and (node.body.lineno, node.body.col_offset) in starts
  ]
  if len(inside) == 1:
    return ast.unparse(inside[0])
  return '\n'.join(_compiled(code))


def _compiled(code: types.CodeType) -> Iterator[str]:
  """The code and its constants, without what depends on where it stands."""
  yield code.co_code.hex()
  yield repr((code.co_names, code.co_varnames, code.co_freevars))
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _compiled(constant)
    else:
      yield repr(constant)


def _global_names(code: types.CodeType) -> Iterator[str]:
  for instruction in dis.get_instructions(code):
    if instruction.opname in ('LOAD_GLOBAL', 'LOAD_NAME'):
      yield str(instruction.argval)
  for constant in code.co_consts:
    if isinstance(constant, types.CodeType):
      yield from _global_names(constant)
