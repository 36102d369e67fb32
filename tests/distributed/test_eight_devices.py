"""What eight devices compute is what one computes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
CASES = ('finetune', 'l2p', 'olora', 'ease', 'ranpac', 'derpp(finetune)', 'vit')
# The solution of a badly conditioned system; the sums that it is solved from are exact.
SOLVED = 'memory/weights'

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """All that the process with eight devices reports."""
  out = tmp_path_factory.mktemp('eight') / 'found.json'
  # Level 0 compiles in half the time; nothing here depends on the speed of what is compiled.
  flags = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  paths = [str(HERE.parent), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': flags,
    'PYTHONPATH': os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / 'eight_devices.py'), str(out)],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(out.read_text())


def _assert_near(distances):
  far = {name: d for name, d in distances.items() if d > (1e-3 if name == SOLVED else 1e-5)}
  assert not far


@pytest.mark.parametrize('case', CASES)
def test_eight_devices_agree_with_one(case, found):
  for layout, got in found['runs'][case].items():
    assert got['accuracy'], layout
    assert got['predictions'], layout
    assert set(got['compilations'].values()) == {1}, layout
    _assert_near(got['distances'])


@pytest.mark.parametrize('case', ['vit', 'derpp(finetune)'])
def test_a_run_moves_from_eight_devices_to_four_to_one(case, found):
  moved = found['moving'][case]
  assert moved['ticks'] == 18  # Stopped twice, 9 ticks apart, of 24.
  assert moved['accuracy']
  _assert_near(moved['distances'])


def test_deltas_follow_their_weights(found):
  specs = found['specs']
  columns, rows = "(None, 'model')", "('model', None)"
  for name, spec in {
    'block_0/attn/qkv/kernel': columns,
    'block_0/mlp/fc1/kernel': columns,
    'block_0/attn/out/kernel': rows,
    'block_0/mlp/fc2/kernel': rows,
    'block_0/attn/qkv/bias': "('model',)",
    'block_0/ln1/scale': '()',
    'params/delta/block_0/attn/q/b': columns,
    'params/delta/block_0/attn/q/a': '()',
    'params/delta/block_0/mlp/fc2/a': rows,
    'params/delta/block_0/mlp/fc2/b': '()',
    'opt_state/0/trace/delta/block_0/attn/q/b': columns,
    'params/head/kernel': rows,
  }.items():
    assert specs[name] == spec, name
