"""The table of all methods: every row can be built, and every method gets as many trials."""

import importlib.util
import json
import pathlib
import sys

import pytest
from rich.console import Console

from pecft_jax.backbones import architecture
from pecft_jax.catalog import METHODS, WRAPPERS, choose
from pecft_jax.train import RunOptions, run
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


def test_what_has_ended_is_written_without_running_anything(tmp_path):
  data = ['--', '--tasks', '2', '--epochs', '1']
  place = ['--benchmark', 'split_digits', '--out', str(tmp_path), '--orders', 'natural', 'seed:3']
  flags = table.parsed([*place, *data])
  experiment = table.made(CASES['simplecil'], flags, 'natural', {})
  for seed in (0, 1):
    at = tmp_path / 'simplecil' / 'natural' / f'seed_{seed}'
    run(experiment.replace(seed=seed), at, RunOptions(console=Console(quiet=True)))
  (tmp_path / 'simplecil' / 'seed_3' / 'seed_0').mkdir(parents=True)  # Begun, without results.
  table.write_tables(flags)
  rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
  assert [(row['row'], row['order'], row['seed']) for row in rows] == [
    ('simplecil', 'natural', 0),
    ('simplecil', 'natural', 1),
  ]
  text = (tmp_path / 'table.md').read_text()
  assert '## Class order: natural' in text and 'seed:3' not in text
  assert (tmp_path / 'table.html').exists()


def test_a_slow_learner_has_a_rate_of_its_own_for_the_head(tmp_path):
  flags = table.parsed(['--benchmark', 'split_digits', '--out', str(tmp_path)])
  choice = CASES['slca'].choices[-1]
  recipe = table.made(CASES['slca'], flags, 'natural', choice).training.recipe
  assert recipe.settings['learning_rate'] == choice['rate'] == 1e-4
  assert dict(recipe.factors) == {'^head': pytest.approx(choice['head_rate'] / choice['rate'])}
