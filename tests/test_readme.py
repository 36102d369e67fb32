import dataclasses
import pathlib
import re

import pytest

from pecft_jax.commands.plan import PlanFlags
from pecft_jax.commands.run import RunFlags

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
GUIDE = ROOT / 'experiments' / 'guides' / 'long_runs.md'


@pytest.mark.slow
def test_the_python_examples_run_as_they_stand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  blocks = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.DOTALL)
  assert len(blocks) == 3
  names = {'workdir': tmp_path / 'run'}
  for block in blocks:
    exec(compile(block, str(README), 'exec'), names)
  assert names['results']['status'] == 'done'
  assert any(abs(leaf).max() > 0 for leaf in names['jax'].tree.leaves(names['grads']))


def test_set_up_is_two_commands():
  commands = re.findall(r'^ +(pip install .*)$', README.read_text(encoding='utf-8'), re.MULTILINE)
  assert commands == [
    'pip install -e . && pecft run experiments/split_digits.py',
    "pip install -e '.[test]' && pytest",
  ]


@pytest.mark.parametrize('page', [README, GUIDE], ids=lambda page: page.name)
def test_flags_and_files_that_pages_name_are_there(page):
  text = page.read_text(encoding='utf-8')
  known = {'data-dir', 'weights', 'method', 'backbone', 'learning-rate', 'seed', 'bounds'}
  known |= {name.replace('_', '-') for cls in (RunFlags, PlanFlags) for name in _fields(cls)}
  known |= {'verify', 'help', 'markdown', 'out', 'json', 'leaves', 'task'}  # Of other commands.
  commands = re.findall(r'pecft (?:run|plan|inspect|report|export)[^\n`]*', text)
  assert len(commands) >= 5
  for flag in re.findall(r'--([a-z][a-z-]*)', '\n'.join(commands)):
    assert flag in known, flag
  for target in re.findall(r'\]\(([^)#:]+)\)', text):
    assert (page.parent / target).exists(), target


def _fields(cls):
  return [field.name for field in dataclasses.fields(cls)]
