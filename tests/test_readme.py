import argparse
import dataclasses
import inspect
import itertools
import pathlib
import re
import shlex

import numpy as np
import pytest

from pecft_jax import data
from pecft_jax.benchmarks import split_cifar100, split_digits, your_images
from pecft_jax.catalog import choose
from pecft_jax.commands.parsers import add_commands
from pecft_jax.commands.plan import PlanFlags
from pecft_jax.commands.run import RunFlags
from pecft_jax.data import digits
from pecft_jax.data.source import select_rows
from pecft_jax.listing import with_tables
from pecft_jax.peft import bitfit, lora
from pecft_jax.presets import preset

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
GUIDES = ROOT / 'experiments' / 'guides'
CHOOSING = GUIDES / 'choosing.md'
SOURCES = GUIDES / 'sources.md'
OWN = GUIDES / 'your_own.md'
PAGE_NAMES = ('index', 'choosing', 'data', 'use', 'long_runs', 'faq')
PAGES = [README, *(GUIDES / f'{name}.md' for name in PAGE_NAMES)]


def run_examples(page, **names):
  """The names that the Python examples of a page leave behind, run as they stand."""
  for block in re.findall(r'```python\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL):
    exec(compile(block, str(page), 'exec'), names)
  return names


def few_digits():
  """`data.digits()` with every seventh of its rows, some of each class in both parts."""
  return tuple(select_rows(part, np.arange(0, len(part.labels), 7)) for part in digits())


def test_the_python_examples_run_as_they_stand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(data, 'digits', few_digits)
  names = run_examples(README, workdir=tmp_path / 'run')
  assert names['results']['status'] == 'done'
  assert any(abs(leaf).max() > 0 for leaf in names['jax'].tree.leaves(names['grads']))


@pytest.mark.slow
def test_what_is_made_in_the_guide_works(tmp_path):
  names = run_examples(OWN, workdir=tmp_path)
  assert names['status'] == 'done'
  assert names['accuracy']['slda'] > 0.985 > names['accuracy']['simplecil'] > 0.95
  # With B away from zero, merging still is rounding alone.
  jax, model, peft = (names[name] for name in ('jax', 'model', 'transform'))
  delta = jax.tree.map(lambda a: a + 0.1, names['delta'])
  images, apply = names['images'], model.backbone.apply
  away = apply(model.params, images, delta, peft=peft).pooled - apply(model.params, images).pooled
  assert abs(away).max() > 0.1
  assert names['merge_error'](apply, peft, delta, model.params, images) < 1e-4

  # The model of the guide takes transforms that replace weights, and dropout.
  own = names['own']
  params = own.init(jax.random.key(0))
  for transform, key in ((bitfit(), None), (lora('fc', 2, dropout=0.5), jax.random.key(2))):
    delta = transform.init(jax.random.key(1), own.sites, params)
    delta = jax.tree.map(lambda a: a + 0.1, delta)
    apply = lambda delta, key=None, peft=transform: own.apply(
      params, images, delta, peft=peft, key=key
    )
    plain = own.apply(params, images) if key is None else apply(delta)
    assert abs(apply(delta, key).pooled - plain.pooled).max() > 0.01


@pytest.mark.parametrize('page', [README, CHOOSING, SOURCES], ids=lambda page: page.name)
def test_tables_are_those_of_the_library(page):
  """After a change: `python experiments/tables.py`."""
  text = page.read_text(encoding='utf-8')
  assert text.count('<!-- table: ') >= 2
  assert with_tables(text) == text


def test_set_up_is_two_commands():
  commands = re.findall(r'^ +(pip install .*)$', README.read_text(encoding='utf-8'), re.MULTILINE)
  assert commands == [
    'pip install -e . && pecft run experiments/split_digits.py',
    "pip install -e '.[test]' && pytest",
  ]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_flags_and_files_that_pages_name_are_there(page):
  text = page.read_text(encoding='utf-8')
  experiments = [each.experiment for each in (split_digits, split_cifar100, your_images)]
  known = {
    name.replace('_', '-') for each in experiments for name in inspect.signature(each).parameters
  }
  known |= {name.replace('_', '-') for cls in (RunFlags, PlanFlags) for name in _fields(cls)}
  parsers = argparse.ArgumentParser().add_subparsers()
  add_commands(parsers.add_parser)
  actions = [action for parser in parsers.choices.values() for action in parser._actions]
  known |= {flag.removeprefix('--') for action in actions for flag in action.option_strings}
  commands = re.findall(rf'pecft (?:{"|".join(parsers.choices)})[^\n`]*', text)
  assert commands
  for flag in re.findall(r'--([a-z][a-z-]*)', '\n'.join(commands)):
    assert flag in known, flag
  for target in re.findall(r'\]\(([^)#:]+)\)', text):
    assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_methods_options_and_presets_that_pages_name_are_there(page):
  for command in re.findall(r'^ +(pecft run split_digits .*)$', page.read_text(), re.MULTILINE):
    flags = shlex.split(command)[3:]
    if any(':' in flag for flag in flags):
      continue  # A module of the reader's own.
    given = {name: [v for k, v in itertools.pairwise(flags) if k == name] for name in flags}
    published = [preset(name) for name in given.get('--preset', ())]
    method = given.get('--method') or [each.method for each in published] or ['ease']
    wrap = ''.join(given.get('--wrap', ()))
    assert choose(method[0], wrap=wrap, set=given.get('--set', ())).method == method[0]


def test_pages_with_commands_are_looked_through():
  pages = [page.name for page in PAGES if '    pecft run split_digits ' in page.read_text()]
  assert pages == ['README.md', 'index.md', 'choosing.md']


def _fields(cls):
  return [field.name for field in dataclasses.fields(cls)]
