"""A decoder computes on eight devices what it does on one."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def found():
  """What the process with eight devices reports."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
  path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get('PYTHONPATH', '')])
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags, 'PYTHONPATH': path}
  done = subprocess.run(
    [sys.executable, str(HERE / 'eight_readers.py')],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('layout', ['data 4, model 2', 'fsdp'])
def test_features_and_gradients_are_those_of_one_device(found, layout):
  assert found[layout]['size'] > 0.5
  # Sums over devices in another order, of features of order 1 in float32.
  assert found[layout]['distance'] < 1e-5


def test_a_judge_on_the_host_sees_the_same_answers(found):
  one, eight = found['judged']
  assert one == eight and one[0][0] != one[1][1]


def test_layers_and_vocabulary_are_split(found):
  specs = found['data 4, model 2']['specs']
  columns, rows = "(None, None, 'model')", "(None, 'model', None)"
  assert specs == {
    **{f'blocks/attn/{name}/kernel': columns for name in 'qkv'},
    'blocks/attn/out/kernel': rows,
    'blocks/mlp/gate/kernel': columns,
    'blocks/mlp/up/kernel': columns,
    'blocks/mlp/down/kernel': rows,
    'embed/table': "('model', None)",
  }
