"""What a plan says of each device is what eight devices hold and send."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """All that the process with eight devices reports."""
  out = tmp_path_factory.mktemp('eight') / 'found.json'
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
  paths = [str(HERE.parents[1]), str(HERE.parent), os.environ.get('PYTHONPATH', '')]
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': flags,
    'PYTHONPATH': os.pathsep.join(paths),
  }
  command = [sys.executable, str(HERE / 'eight_devices.py'), str(out)]
  done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(out.read_text())


def test_every_line_is_what_the_first_device_holds(found):
  assert len(found) == 3 * 4 + 2 * 2  # Methods and layouts.
  for case, got in found.items():
    assert got['planned'] == got['held'], case


def test_layouts_differ(found):
  frozen = {case.partition(';')[2]: got['held']['frozen'] for case, got in found.items()}
  assert len(set(frozen.values())) == 4


def test_a_split_batch_sends_the_sums_of_gradients(found):
  sent = [got for got in found.values() if 'sent' in got]
  assert len(sent) == 2
  for got in sent:
    # The counts and the loss of the log are summed, too: four numbers.
    assert 0 <= got['sent'] - got['planned_sent'] <= 4 * 8
