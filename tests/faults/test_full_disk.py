"""The real command, when files cannot grow: it says so, keeps what is good, and resumes."""

import shutil

import pytest
from tiny_runs import outcome

from faults.conftest import ALWAYS, RARELY
from pecft_jax.workdir.inspection import inspect_run

# What is being written when the disk is full; the flags; where the message says it was.
WRITES = {
  # More than any file but the arrays and their metadata.
  'a checkpoint': (r"fill_disk(r'checkpoints/7\.orbax', 1, 1000)", ALWAYS, 'checkpoint 7 could'),
  'the first checkpoint': (r"fill_disk(r'checkpoints/1\.orbax', 1, 0)", ALWAYS, 'File too large'),
  # Opened before the log grows; a row has some 150 bytes.
  'metrics.jsonl': ("fill_disk(r'metrics\\.csv$', 1, 200)", RARELY, 'File too large'),
  # Written at the start, and after each task.
  'results.json': ("fill_disk(r'results\\.json\\.part', 3, 500)", RARELY, 'File too large'),
  'config.json': ("fill_disk(r'config\\.json\\.part', 1, 10)", RARELY, 'File too large'),
  'report.html': ("fill_disk(r'report\\.html', 1, 10)", RARELY, 'File too large'),
}


@pytest.mark.slow
@pytest.mark.parametrize('write', WRITES)
def test_a_full_disk_ends_the_run_which_then_resumes(write, finish, again, whole, tmp_path):
  fault, flags, where = WRITES[write]
  expected = whole('ease')
  workdir = tmp_path / 'run'
  status, said = finish('ease', workdir, *flags, fault=fault)
  assert status == 1, said
  assert where in said
  assert str(workdir) in said
  assert 'bytes are free there' in said
  assert 'once there is room, the same command resumes' in said
  assert 'Traceback' not in said
  left = inspect_run(workdir, arrays=True)
  assert not [each for each in left['checkpoints'] if each['problem']]
  if write == 'a checkpoint':
    assert [each['tick'] for each in left['checkpoints']] == [5, 6]
  status, said = again('ease', workdir, *flags)
  assert status == 0, said
  assert outcome(workdir) == expected
  assert not inspect_run(workdir, arrays=True)['problems']


# In a mount namespace of its own; what is mounted there goes with the last of its processes.
_SCRIPT = """
mount -t tmpfs -o size=400k none "$1" || exit 42
head -c 300000 /dev/zero > "$1/filler"
shift
"$@"; first=$?
rm "$RUN/../filler"
"$@"; second=$?
cp -r "$RUN" "$KEPT"
echo "statuses $first $second"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('unshare') is None, reason='needs unshare')
def test_a_disk_that_is_really_full(command, whole, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  process = command('ease', disk / 'run', *ALWAYS, through=(
    'unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', _SCRIPT, 'sh', str(disk)),
    RUN=str(disk / 'run'), KEPT=str(tmp_path / 'kept'),
  )  # fmt: skip
  said, _ = process.communicate(timeout=300)
  if process.returncode in (1, 42):
    pytest.skip(f'no file system may be mounted here: {said.strip()}')
  assert 'No space left on device' in said
  assert 'once there is room, the same command resumes' in said
  assert 'Traceback' not in said
  assert 'statuses 1 0' in said
  assert outcome(tmp_path / 'kept') == whole('ease')
