"""What may import what, stated as data; names of modules, packages and facades."""

import ast
import graphlib
import importlib
import pathlib
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Lowest first. A package imports from rungs below its own, never from its own rung or above;
# imports inside functions count. The single files of the first rung may import each other.
ORDER = (
  (
    'about',
    'arguments',
    'assignments',
    'axes',
    'environment',
    'files',
    'inputs',
    'local',
    'masks',
    'measures',
    'paths',
    'problems',
    'product',
    'quantised',
    'recipes',
    'schedules',
    'settings',
    'sources',
    'text',
    'typing',
    'values',
  ),
  ('peft', 'heads'),
  ('backbones', 'continual', 'data', 'metrics', 'devices'),
  ('workdir',),
  ('train',),
  ('learners',),
  ('report',),
  ('plan', 'interop'),
  ('catalog', 'presets'),
  ('benchmarks',),
  ('listing',),
  ('commands',),
  ('cli',),
)
RUNG = {name: rung for rung, names in enumerate(ORDER) for name in names}

# What a package does not import, and the files that are excepted.
NEVER = (
  ('peft', 'flax', {'pecft_jax.peft.linen_bridge'}),
  ('continual', 'flax', set()),
  ('continual', 'pecft_jax.backbones', set()),
)

FILES = {
  '.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): file
  for file in sorted((ROOT / 'pecft_jax').rglob('*.py'))
}
TREES = {name: ast.parse(file.read_text(encoding='utf-8')) for name, file in FILES.items()}


def package(name):
  """`peft` of `pecft_jax.peft.lowrank.lora`; empty for the library itself."""
  return name.split('.')[1] if '.' in name else ''


def imported(tree, *, lazy=True):
  """The full names that a file imports; with `lazy`, also inside of functions."""
  inside = set()
  if not lazy:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
  for node in ast.walk(tree):
    if node in inside:
      continue
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      full = [f'{node.module}.{alias.name}' for alias in node.names]
      yield from (name if name in FILES else node.module for name in full)


def of_library(names):
  return {name for name in names if name in FILES}


@pytest.mark.parametrize('name', sorted(set(map(package, FILES)) - {'', '__main__'}))
def test_a_package_imports_only_what_lies_below(name):
  assert name in RUNG, f'give {name} a place in ORDER of {__file__}'
  for module, tree in TREES.items():
    if package(module) != name:
      continue
    for other in map(package, of_library(imported(tree))):
      single = RUNG[name] == 0 and RUNG.get(other) == 0
      assert other in ('', name) or single or RUNG[other] < RUNG[name], f'{module} -> {other}'


def test_no_module_imports_itself_in_a_circle():
  graph = {name: of_library(imported(tree, lazy=False)) - {name} for name, tree in TREES.items()}
  order = list(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError.
  assert len(order) == len(FILES)


@pytest.mark.parametrize(('name', 'other', 'excepted'), NEVER, ids=str)
def test_a_package_does_without(name, other, excepted):
  guilty = [
    module
    for module, tree in TREES.items()
    if package(module) == name
    and module not in excepted
    and any(target == other or target.startswith(f'{other}.') for target in imported(tree))
  ]
  assert guilty == []


def _names(tree):
  """The functions, classes and constants that a file defines at its top level."""
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.name
    elif isinstance(node, ast.Assign):
      yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      yield node.target.id


@pytest.mark.parametrize('name', [name for name in FILES if not name.endswith('__main__')])
def test_a_full_name_reaches_the_file_and_its_own_names(name):
  module = importlib.import_module(name)
  # As `import pecft_jax.peft.lowrank.lora as lora` walks: by attributes.
  walked = importlib.import_module(name.split('.')[0])
  for part in name.split('.')[1:]:
    walked = getattr(walked, part)
  assert isinstance(walked, types.ModuleType), f'{name} is shadowed by a {type(walked).__name__}'
  assert walked is module
  assert module.__file__ == str(FILES[name])
  assert [each for each in _names(TREES[name]) if not hasattr(module, each)] == []


def _facades():
  return [name for name, tree in TREES.items() if '__all__' in set(_names(tree))]


def _rank(name):
  """Constants, then types, then functions."""
  return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize('name', _facades())
def test_a_facade_lists_sorted_names_that_can_be_imported(name):
  module = importlib.import_module(name)
  exported = list(module.__all__)
  assert exported == sorted(set(exported), key=_rank)
  assert [each for each in exported if not hasattr(module, each)] == []
  assert not any(isinstance(getattr(module, each), types.ModuleType) for each in exported)


def test_there_are_facades():
  names = {name.removeprefix('pecft_jax.') for name in _facades()}
  assert names >= {'peft', 'continual', 'backbones', 'data', 'train', 'interop', 'report', 'plan'}


def test_names_of_methods_and_transforms_are_no_packages_of_theirs():
  """A folder groups files by idea: `import pecft_jax.peft.lora` must not be a function."""
  for facade in _facades():
    exported = set(importlib.import_module(facade).__all__)
    below = {name for name in FILES if name.rpartition('.')[0] == facade}
    assert not exported & {name.rpartition('.')[2] for name in below}


def test_test_files_have_names_of_their_own():
  """Of two files of one name, in folders that are no packages, pytest imports one."""
  found: dict[str, list[pathlib.Path]] = {}
  for file in (ROOT / 'tests').rglob('test_*.py'):
    if not (file.parent / '__init__.py').exists():
      found.setdefault(file.name, []).append(file)
  assert len(found) > 50
  assert not {name: files for name, files in found.items() if len(files) > 1}
