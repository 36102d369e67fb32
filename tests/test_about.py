"""Everything that can be registered is, and is seen by listings and common tests."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import typing

import pytest
from tinies import OF_CLASSES

import pecft_jax
from pecft_jax import continual
from pecft_jax.about import NEEDS, About, Paper, about, about_of, factories, tinies
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.peft import PEFTS
from pecft_jax.typing import ContinualMethod, PeftTransform

ALL = {**METHODS, **WRAPPERS, **PEFTS}
# Folders that hold no families, but the machinery that these use.
MACHINERY = ('memory',)


def test_families_are_looked_through():
  names = {module.__name__.split('.', 2)[2] for module in modules('peft') if in_family(module)}
  assert {'lowrank.lora', 'tokens.prefix'} <= names
  names = {module.__name__.split('.', 2)[2] for module in modules('continual') if in_family(module)}
  assert {'prompts.l2p', 'wrappers.ewc'} <= names


def modules(package):
  """Every module of a package, imported."""
  root = importlib.import_module(f'pecft_jax.{package}')
  for info in pkgutil.walk_packages(root.__path__, f'{root.__name__}.'):
    yield importlib.import_module(info.name)


def in_family(module):
  """Whether it is a file of a family's folder."""
  parts = module.__name__.split('.')
  return len(parts) == 4 and parts[2] not in MACHINERY


def own_functions(module):
  for name, value in vars(module).items():
    if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != '_':
      yield value


def returned(function):
  return typing.get_type_hints(function).get('return')


@pytest.mark.parametrize(('package', 'kind'), [
  ('continual', 'method'), ('continual', 'wrapper'), ('peft', 'transform'),
])  # fmt: skip
def test_what_is_described_has_its_line_in_the_facade(package, kind):
  facade = importlib.import_module(f'pecft_jax.{package}')
  described = {
    function
    for module in modules(package)
    for function in own_functions(module)
    if isinstance(getattr(function, 'about', None), About) and function.about.kind == kind
  }
  registered = set(factories(vars(facade), kind).values())
  assert {f.__name__ for f in described} == {f.__name__ for f in registered}


def test_every_method_and_wrapper_is_described():
  """So none of them can exist that no common test sees."""
  for module in modules('continual'):
    if not in_family(module):
      continue
    for function in own_functions(module):
      if returned(function) is ContinualMethod and function is not continual.wrappers.wrap.wrap:
        assert about_of(function).kind in ('method', 'wrapper'), function


def test_every_file_of_transforms_has_one():
  for module in modules('peft'):
    if in_family(module):
      makes = [f for f in own_functions(module) if returned(f) is PeftTransform]
      assert any(f in PEFTS.values() for f in makes), module


@pytest.mark.parametrize('name', ALL)
def test_the_family_is_the_folder(name):
  folder = ALL[name].__module__.split('.')[-2]
  assert about_of(ALL[name]).family.replace('-', '') == folder


@pytest.mark.parametrize('name', ALL)
def test_the_line_about_it_is_short(name):
  assert 15 < len(about_of(ALL[name]).summary) < 100


@pytest.mark.parametrize('name', {**METHODS, **WRAPPERS})
def test_methods_and_wrappers_are_public_under_their_names(name):
  assert getattr(continual, name) is ALL[name]


@pytest.mark.parametrize('name', PEFTS)
def test_transforms_need_no_arguments(name):
  assert isinstance(PEFTS[name](), PeftTransform)


@pytest.mark.parametrize('name', tinies(PEFTS))
def test_tiny_transforms_are_transforms(name):
  assert isinstance(tinies(PEFTS)[name](), PeftTransform)


def test_no_name_is_of_two_kinds():
  assert len(ALL) == len(METHODS) + len(WRAPPERS) + len(PEFTS)


def test_methods_share_one_signature():
  for name, factory in METHODS.items():
    first, second, *rest = inspect.signature(factory).parameters.values()
    assert (first.name, second.name) == ('backbone', 'capacity'), name
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in rest), name
    if 'peft' in inspect.signature(factory).parameters:
      assert rest[0].name == 'peft' and rest[0].default is None, name


def test_papers_are_those_that_the_file_names():
  for name, factory in ALL.items():
    text = pathlib.Path(inspect.getsourcefile(inspect.unwrap(factory))).read_text(encoding='utf-8')
    for paper in about_of(factory).papers:
      assert f'arXiv:{paper.arxiv}' in text, (name, paper)


def make():
  """Makes something."""


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    (('methd', 'x'), {'tiny': make}, "unknown kind 'methd'; did you mean 'method'?"),
    (('method', 'x'), {'tiny': make, 'needs': ('biasses',)}, "did you mean 'biases'?"),
    (('method', 'x', Paper('A title', 'arXiv:1')), {'tiny': make}, "expected an arXiv id as '2106"),
    (('method', 'x'), {'tiny': {'small': make}}, "expected a small instance named ''"),
  ],
)
def test_what_is_said_wrongly_is_refused(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    about(*arguments, **options)


def test_a_factory_without_a_sentence_is_refused():
  def bare():
    """No end"""

  with pytest.raises(ValueError, match='must begin with one sentence on a line'):
    about('method', 'x', tiny=make)(bare)


def test_a_factory_without_a_small_instance_cannot_be_registered():
  with pytest.raises(TypeError, match='tiny'):
    about('method', 'x')


def test_one_name_for_two_is_refused():
  one, two = (about('method', 'x', tiny=make, name='same')(_copy(make)) for _ in range(2))
  with pytest.raises(ValueError, match="two methods are named 'same'"):
    factories({'one': one, 'two': two}, 'method')


def _copy(function):
  def again():
    return function()

  again.__doc__ = function.__doc__
  return again


def test_needs_say_what_they_mean():
  assert all(len(text) > 10 for text in NEEDS.values())
  assert {need for factory in ALL.values() for need in about_of(factory).needs} <= set(NEEDS)


def test_passes_are_those_of_the_method():
  vit = importlib.import_module('pecft_jax.backbones').vit
  backbone = vit(image_size=8, channels=1, patch=4, width=8, depth=1, heads=2, mean=(0.5,),
                 std=(0.5,))  # fmt: skip
  capacity = pecft_jax.typing.Capacity(5, 10)
  for name, factory in OF_CLASSES.items():
    said = {'1': 1, '2': 2, 'T': 5, 'T + 1': 6}[about_of(factory).passes]
    assert about_of(factory).tiny[''](backbone, capacity).passes(5) == said, name


# The year and month, and from 2015 on five digits.
_ARXIV = re.compile(r'(0[7-9]|1[0-4])(0[1-9]|1[0-2])\.\d{4}|(1[5-9]|2\d)(0[1-9]|1[0-2])\.\d{5}')


def test_papers_have_ids_that_can_be_and_one_title_each():
  papers = [paper for factory in ALL.values() for paper in about_of(factory).papers]
  assert [paper for paper in papers if not _ARXIV.fullmatch(paper.arxiv)] == []
  assert len({paper.arxiv for paper in papers}) == len(set(papers))


@pytest.mark.parametrize('name', ALL)
def test_the_papers_of_a_factory_are_named_where_it_is_defined(name):
  factory = ALL[name]
  module = importlib.import_module(factory.__module__)
  said = f'{module.__doc__} {factory.__doc__}'
  assert [paper for paper in about_of(factory).papers if paper.arxiv not in said] == []


def test_arxiv_ids_in_sources_and_pages_can_be():
  root = pathlib.Path(pecft_jax.__file__).parents[1]
  files = [
    *root.glob('*.md'),
    *(root / 'experiments').rglob('*.md'),
    *root.rglob('pecft_jax/**/*.py'),
  ]
  found = [
    (file.name, number)
    for file in files
    for number in re.findall(r'arXiv[: ](\d[\w.]*\w)', file.read_text(encoding='utf-8'))
  ]
  assert len(found) > 80
  assert [each for each in found if not _ARXIV.fullmatch(each[1])] == []


def test_switches_are_options_whose_default_is_the_correct_form():
  found = [(name, each) for name in ALL for each in about_of(ALL[name]).switches]
  assert {'l2p', 'dualprompt'} <= {name for name, _ in found}
  for name, each in found:
    option = inspect.signature(ALL[name]).parameters[each.option]
    assert option.default != each.published, (name, each.option)
    assert not each.what.endswith('.') and each.where
