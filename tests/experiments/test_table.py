"""The table of all methods: every row can be built, and every method gets as many trials."""

import importlib.util
import pathlib
import sys

import pytest

from pecft_jax.backbones import architecture
from pecft_jax.catalog import METHODS, WRAPPERS, choose
from pecft_jax.typing import Capacity

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'table.py'
SPEC = importlib.util.spec_from_file_location('table', FILE)
table = importlib.util.module_from_spec(SPEC)
sys.modules['table'] = table
SPEC.loader.exec_module(table)
CASES = {case.name: case for case in table.cases()}


def test_every_method_and_every_wrapper_has_a_row():
  assert set(CASES) == {*METHODS, *WRAPPERS} - set(table.LEFT_OUT)


def test_every_method_has_four_trials_and_the_upper_bound_more():
  others = {name: len(case.choices) for name, case in CASES.items() if len(case.choices) != 4}
  assert others == {'simplecil': 1, 'joint': 6}


@pytest.mark.parametrize('name', sorted({**table.STRENGTHS, **table.UNTRAINED}))
def test_strengths_are_options_of_their_method(name):
  case = CASES[name]
  last = case.choices[-1]  # One of them is built: the others have the same names.
  assert {frozenset(choice) for choice in case.choices} == {frozenset(last)}
  options = [f'{key}={value}' for key, value in last.items() if key != 'rate']
  method = choose(case.method, wrap=case.wrap, set=options).build(
    architecture('vit_glyphs16'), Capacity(tasks=2, classes=4)
  )
  (key, value), *_ = ((key, value) for key, value in last.items() if key != 'rate')
  assert method.settings[key.partition('.')[2]] == value


def test_a_benchmark_of_any_file_has_its_own_flags(tmp_path):
  args = ['--benchmark', 'split_digits', '--out', str(tmp_path), '--', '--epochs', '1']
  flags = table.parsed(args)
  made = table.made(CASES['ewc'], flags, 'seed:3', {'rate': 0.5, 'ewc.strength': 7.0})
  assert made.scenario.name.startswith('split_digits')
  assert made.training.epochs == 1
  assert made.method.settings['strength'] == 7.0
