"""What is computed is what the committed figures say; experiments/bench_regression.py --update."""

import importlib.util
import json
import pathlib

import pytest

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'bench_regression.py'


@pytest.fixture(scope='module')
def bench():
  """The script, as a module."""
  spec = importlib.util.spec_from_file_location('bench_regression', FILE)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('part', ['programs', 'runs'])
def test_figures_are_as_committed(bench, part):
  found = getattr(bench, part)()
  committed = json.loads(bench.FILE.read_text(encoding='utf-8'))
  mine = {name: value for name, value in committed.items() if name in found}
  assert not bench.compared(found, mine)


def test_the_file_has_the_figures_of_both_parts(bench):
  committed = json.loads(bench.FILE.read_text(encoding='utf-8'))
  kinds = {name.split()[0] for name in committed}
  assert kinds == bench.TOLERANCES.keys()


def test_what_differs_is_told(bench):
  there = {'flops a': 2.0, 'passes a': 5, 'passes b': 1}
  assert not bench.compared({'flops a': 2.19, 'passes a': 5, 'passes b': 1}, there)
  assert bench.compared({'flops a': 2.21, 'passes a': 6, 'flops c': 1.0}, there) == [
    'flops a: committed 2.0 within 10%, found 2.21',
    'flops c: committed None within 10%, found 1.0',
    'passes a: committed 5, found 6',
    'passes b: committed 1, found None',
  ]
