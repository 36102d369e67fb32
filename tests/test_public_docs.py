"""Examples in docstrings run; public functions have one, and say what they raise."""

import ast
import doctest
import functools
import importlib
import inspect
import pathlib

import pytest

from pecft_jax import backbones, data

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


@pytest.mark.parametrize('facade', FACADES)
def test_public_names_have_docstrings(facade):
  module = importlib.import_module(facade)
  for name in module.__all__:
    public = getattr(module, name)
    if inspect.isclass(public) or callable(public):
      text = inspect.getdoc(public) or ''
      assert text and not text.startswith(f'{name}('), f'{facade}.{name} has no docstring'


@pytest.mark.parametrize('facade', FACADES)
def test_public_functions_have_an_example(facade):
  without = {name for name, function in _functions(facade) if '>>>' not in (function.__doc__ or '')}
  assert not without


@pytest.mark.parametrize('facade', FACADES)
def test_public_functions_say_what_they_raise(facade):
  for name, function in _functions(facade):
    own = ast.parse(inspect.cleandoc('\n' + inspect.getsource(function))).body[0]
    raises = any(isinstance(part, ast.Raise) for part in ast.walk(own))
    if raises:
      assert 'Raises' in (function.__doc__ or ''), f'{facade}.{name} raises, and does not say so'
