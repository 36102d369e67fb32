"""`pecft params`, against what a run really trains and carries."""

import json

import jax
import pytest

from pecft_jax import cli
from pecft_jax.benchmarks import split_digits
from pecft_jax.paths import tree_bytes
from pecft_jax.peft.halves import split_kept

ARGS = ['params', 'split_digits', '--no-bounds']


def rows(capsys, *flags):
  assert cli.main([*ARGS, *flags, '--json']) == 0
  return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(('method', 'peft'), [('ease', 'adaptformer'), ('ranpac', 'pissa')])
def test_bytes_are_those_of_a_real_state(capsys, method, peft):
  found = rows(capsys, '--method', method, '--peft', peft, '--frozen')
  experiment = split_digits.experiment(method=method, peft=peft, bounds=False)
  params, memory = experiment.method.init(jax.random.key(0), experiment.frozen)
  active, kept = split_kept(params)
  parts = {'trained': active, 'kept': kept, 'memory': memory, 'frozen': experiment.frozen}
  for role, tree in parts.items():
    assert sum(row['bytes'] for row in found if row['role'] == role) == tree_bytes(tree)
  assert len({row['name'] for row in found}) == len(found)


def test_the_table_names_sums_and_the_share(capsys):
  assert cli.main([*ARGS, '--method', 'finetune', '--peft', 'lora']) == 0
  text = capsys.readouterr().out
  assert 'params/delta/block_0/attn/q/a' in text
  assert 'trained: ' in text
  assert '% of the backbone' in text
  assert 'frozen/' not in text
