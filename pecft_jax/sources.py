"""What a function is, as JSON: its name, and a digest of its source and of all that it reads.

Functions of the libraries whose versions `pecft_jax.environment` records count by name alone, so
that upgrading a library does not change a configuration.
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

# Packages whose versions are part of the environment of a run, and Python with its standard
# library.
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
  return '.'.join(_place(thing))


def counts_by_name(thing: Any) -> bool:
  """Whether a function or class is found under its own name in a library whose version is recorded.

  False for objects that only carry such a name: `jax.grad(jnp.sin)`, or the result of
  `functools.wraps`.

  >>> import operator
  >>> counts_by_name(operator.itemgetter), counts_by_name(operator.itemgetter(0))
  (True, False)
  """
  module, name = _place(thing)
  if not _is_recorded(module):
    return False
  found: Any = sys.modules.get(module)
  for part in name.split('.'):
    found = getattr(found, part, None)
  return found is thing


def is_library(thing: Any) -> bool:
  """Whether the code of a function, class or module is of a library whose version is recorded."""
  if isinstance(thing, types.ModuleType):
    return _is_recorded(thing.__name__)
  if isinstance(thing, types.FunctionType):  # `functools.wraps` changes its `__module__`.
    return _is_recorded(thing.__globals__.get('__name__') or '')
  return _is_recorded(getattr(thing, '__module__', None) or '')


def source_name(function: types.FunctionType) -> str:
  """`module.name` of the code of a function, whatever it was named after."""
  return f'{function.__globals__.get("__name__")}.{function.__code__.co_qualname}'


def _place(thing: Any) -> tuple[str, str]:
  """The module of a function or class, and its name there."""
  owner = getattr(thing, '__objclass__', None)  # Of a method of a class that was compiled.
  module = getattr(owner if owner is not None else thing, '__module__', None) or 'builtins'
  name = getattr(thing, '__qualname__', None) or getattr(thing, '__name__', None)
  return module, str(name)


def _is_recorded(module: str) -> bool:
  root = module.partition('.')[0]
  return root in PACKAGES or root in sys.stdlib_module_names


def class_sha256(thing: type) -> str:
  """A digest of the source of a class and of its bases, those of recorded libraries left out."""
  sources = [_class_source(each) for each in thing.__mro__ if not is_library(each)]
  return sha256_of_json(sources)


def file_sha256(module: types.ModuleType) -> dict[str, str]:
  """`{'sha256': ...}` of the file of a module; empty where it has none."""
  path = getattr(module, '__file__', None)
  if path is None or not pathlib.Path(path).is_file():
    return {}
  return {'sha256': hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]}


def source_sha256(thing: Any) -> str:
  """The first 16 hex digits of the sha256 of a function's source text.

  Where there is no source (a prompt, generated code) the digest is of the compiled code.
  """
  if isinstance(thing, type):
    return class_sha256(thing)
  code = getattr(thing, '__code__', None)
  text = _source(thing) if code is None else _source_of_code(code, thing)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def files_beside(path: str | pathlib.Path) -> dict[str, str]:
  """The sha256 of a Python file, and of all that it imports from its folder or below, by name.

  Found in the text of the files, so imports inside functions count, and those whose names are
  computed at run time (`importlib.import_module(name)`) do not.

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
    except SyntaxError:  # Python raises this error on import.
      continue
    for module in _imports(tree, current.relative_to(folder).parts[:-1]):
      if module[0] not in PACKAGES:
        due += _files_of(folder, module)
  return dict(sorted(found.items()))


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
  """The dotted names that a file may import, in parts; `package` is its folder."""
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
  """The variables that a function closes over, and its defaults, by name."""
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
  # Of its own code: `inspect` would follow `__wrapped__` to that of another.
  code = getattr(thing, '__code__', None)
  try:
    return textwrap.dedent(inspect.getsource(thing if code is None else code))
  except (OSError, TypeError):
    return repr(type(thing)) if code is None else '\n'.join(_compiled(code))


@functools.cache
def _class_source(thing: type) -> str:
  try:
    return textwrap.dedent(inspect.getsource(thing))
  except (OSError, TypeError):
    return '\n'.join(_compiled_members(thing))


def _compiled_members(thing: type) -> Iterator[str]:
  """The methods of a class without source, except those of Python itself."""
  for name, member in sorted(vars(thing).items()):
    function = getattr(member, '__func__', None) or getattr(member, 'fget', None) or member
    code = getattr(function, '__code__', None)
    generated = is_library(function) or getattr(code, 'co_filename', '') == '<string>'
    if isinstance(code, types.CodeType) and not generated:
      yield name
      yield from _compiled(code)


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
