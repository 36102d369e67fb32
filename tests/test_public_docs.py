"""Examples in docstrings run; public functions say what they take, give back and raise."""

import ast
import doctest
import functools
import importlib
import inspect
import pathlib
import re

import numpy as np
import pytest

from pecft_jax import backbones, data

SHAPE = re.compile(r'\[[^\]]*\]')
ROOT = pathlib.Path(__file__).parents[1]
FILES = {
  '.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): file
  for file in sorted((ROOT / 'pecft_jax').rglob('*.py'))
}
FACADES = [
  name
  for name, file in FILES.items()
  if file.name == '__init__.py' and '\n__all__' in file.read_text(encoding='utf-8')
]


def _docstrings(file):
  """(name, line, docstring) of everything in a file that has an example."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      text = ast.get_docstring(node) or ''
      if '>>>' in text:
        yield getattr(node, 'name', 'module'), getattr(node, 'lineno', 1), text


# Examples that name the same model or data share one copy of it.
_SHARED = [
  (backbones, 'pretrained', functools.cache(backbones.pretrained)),
  (backbones, 'random_weights', functools.cache(backbones.random_weights)),
  (data, 'digits', functools.cache(data.digits)),
]


@pytest.fixture
def loaded_once(monkeypatch):
  """The facades' models and data, each made once."""
  for module, name, function in _SHARED:
    monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize('module', [name for name, file in FILES.items() if [*_docstrings(file)]])
def test_the_examples_of_a_module_run(module, loaded_once, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
  said = []
  for name, line, text in _docstrings(FILES[module]):
    names = dict(vars(importlib.import_module(module)))
    example = doctest.DocTestParser().get_doctest(text, names, name, str(FILES[module]), line)
    runner.run(example, out=said.append)
  assert runner.summarize(verbose=False).failed == 0, ''.join(said)


def _functions(facade):
  module = importlib.import_module(facade)
  for name in module.__all__:
    found = inspect.unwrap(getattr(module, name))
    if inspect.isfunction(found):
      yield name, found


def _sections(doc):
  """The indented lines below each heading of a docstring, by heading."""
  found, current = {}, None
  for line in doc.splitlines():
    if heading := re.fullmatch(r'(\w+):', line):
      current = found.setdefault(heading[1], [])
    elif current is not None and (line.startswith('  ') or not line):
      current.append(line[2:])
    else:
      current = None
  return found


def _entries(lines):
  """What a section says of each name in it."""
  found, name = {}, None
  for line in lines:
    if entry := re.match(r'\*{0,2}(\w+): ?(.*)', line):
      name = entry[1]
      found[name] = entry[2]
    elif name is not None:
      found[name] += f' {line.strip()}'
  return found


def _is_array(annotation):
  """Whether an annotation is of arrays, rather than of functions of them."""
  outside = re.sub(r'Callable\[.*\]', '', str(annotation))
  return re.search(r'\b(Array|ndarray)\b', outside) and 'Schedule' not in outside


def _faults(function):
  """What the docstring of a public function does not say, or says wrongly."""
  doc = inspect.getdoc(function) or ''
  sections, signature = _sections(doc), inspect.signature(function)
  said = _entries(sections.get('Args', []))
  if missing := signature.parameters.keys() - said.keys():
    yield f'Args: misses {sorted(missing)}'
  if others := said.keys() - signature.parameters.keys():
    yield f'Args: names {sorted(others)}, which are not parameters'
  for name, parameter in signature.parameters.items():
    if _is_array(parameter.annotation) and not SHAPE.search(said.get(name, '')):
      yield f'Args: gives no shape of {name}, as in `[B, D]`'
  returned = ' '.join([doc.partition('\n\n')[0], *sections.get('Returns', [])])
  if _is_array(signature.return_annotation) and not SHAPE.search(returned):
    yield 'Returns: gives no shape, as in `[B, D]`'
  own = ast.parse(inspect.cleandoc('\n' + inspect.getsource(function))).body[0]
  raised = {
    node.exc.func.id
    for node in ast.walk(own)
    if isinstance(node, ast.Raise)
    and isinstance(node.exc, ast.Call)
    and isinstance(node.exc.func, ast.Name)
  }
  # `unknown` makes the ValueError of a name that there is not.
  raised = {'ValueError' if name == 'unknown' else name for name in raised}
  if silent := raised - _entries(sections.get('Raises', [])).keys():
    yield f'Raises: misses {sorted(silent)}'
  if '>>>' not in doc:
    yield 'it has no example'


@pytest.mark.parametrize('facade', FACADES)
def test_public_names_have_docstrings(facade):
  module = importlib.import_module(facade)
  for name in module.__all__:
    public = getattr(module, name)
    if inspect.isclass(public) or callable(public):
      text = inspect.getdoc(public) or ''
      assert text and not text.startswith(f'{name}('), f'{facade}.{name} has no docstring'


@pytest.mark.parametrize('facade', FACADES)
def test_methods_of_public_classes_have_docstrings(facade):
  module = importlib.import_module(facade)
  for name in module.__all__:
    public = getattr(module, name)
    if inspect.isclass(public) and public.__module__.startswith('pecft_jax'):
      own = {key: value for key, value in vars(public).items() if not key.startswith('_')}
      without = [
        key
        for key, value in own.items()
        if isinstance(value, property) or inspect.isfunction(value)
        if not inspect.getdoc(value)
      ]
      assert without == [], f'{facade}.{name}'


@pytest.mark.parametrize('facade', FACADES)
def test_docstrings_name_arguments_shapes_errors_and_an_example(facade):
  faults = [
    f'{name}: {fault}' for name, function in _functions(facade) for fault in _faults(function)
  ]
  assert faults == []


def test_what_a_docstring_does_not_say_is_found():
  def faulty(x: np.ndarray, y) -> np.ndarray:
    """Adds.

    Args:
      x: the first.
      z: the second.
    """
    if y is None:
      raise ValueError('expected two')
    return x + y

  assert list(_faults(faulty)) == [
    "Args: misses ['y']",
    "Args: names ['z'], which are not parameters",
    'Args: gives no shape of x, as in `[B, D]`',
    'Returns: gives no shape, as in `[B, D]`',
    "Raises: misses ['ValueError']",
    'it has no example',
  ]
