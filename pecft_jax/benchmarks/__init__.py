"""Benchmarks that come with the library: `pecft run NAME`, wherever it is installed.

Each module here is one, with a function `experiment(...) -> Experiment` whose typed parameters are
the flags; the first line of its docstring is its line in `pecft list benchmarks`.
"""

import ast
import pathlib
import pkgutil


def benchmarks() -> dict[str, str]:
  """The names of all benchmarks, with a one-line summary of each; imports none of them.

  >>> sorted(benchmarks())[-1]
  'your_images'
  """
  return {name: _first_line(file_of(name)) for _, name, _ in sorted(pkgutil.iter_modules(__path__))}


def file_of(name: str) -> pathlib.Path:
  """The file of a benchmark.

  Args:
    name: of a benchmark.

  >>> file_of('split_digits').name
  'split_digits.py'
  """
  return pathlib.Path(__path__[0]) / f'{name}.py'


def _first_line(file: pathlib.Path) -> str:
  text = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
  return text.partition('\n')[0]


__all__ = ['benchmarks', 'file_of']
