"""Facts about work directories: whole, running, damaged, and none at all."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from tiny_runs import silent, tiny_experiment, tiny_method

from pecft_jax.report.inspected import problems_of
from pecft_jax.train import Stopped, run
from pecft_jax.workdir import inspection
from pecft_jax.workdir.claim import locked
from pecft_jax.workdir.inspection import bytes_of, holder, inspect_run
from pecft_jax.workdir.stored import Damaged

# Reads of damaged files leave coroutines of orbax behind.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished run with a reference."""
  workdir = tmp_path_factory.mktemp('finished')
  experiment = tiny_experiment('ease', references={'finetune': tiny_method('finetune')})
  run(experiment, workdir, silent(config={'flag': 1}))
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of it."""
  return shutil.copytree(finished, tmp_path / 'run')


def _stamps(directory):
  paths = [directory, *directory.rglob('*')]
  return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_the_facts_agree_with_the_results(finished):
  facts = inspect_run(finished)
  results = json.loads((finished / 'results.json').read_text())
  assert not facts['problems']
  assert (facts['status'], facts['finished'], facts['total']) == ('done', 2, 2)
  assert facts['method'] == 'ease'
  assert facts['average_accuracy'] == results['metrics']['average_accuracy']
  assert (facts['seed'], facts['identity']) == (0, results['identity'])
  assert facts['settings'] == {'flag': 1}
  rows = (finished / 'metrics.jsonl').read_text().splitlines()
  assert facts['log'] == {'rows': len(rows), 'train': len(rows) - 2, 'eval': 2}
  sizes = {group['name']: group['bytes'] for group in facts['state']}
  cost = results['efficiency']
  assert sizes['params'] + sizes['memory'] == cost['carried_state_bytes']
  assert sizes['opt_state'] == cost['optimizer_state_bytes']
  assert sum(leaf['bytes'] for leaf in facts['leaves']) == sum(sizes.values())
  assert sum(group['share'] for group in facts['state']) == pytest.approx(1)
  assert [leaf['shape'] for leaf in facts['leaves'] if leaf['name'] == 'params/head/kernel'] == [
    [8, 4]
  ]
  newest = facts['checkpoints'][-1]
  assert newest['state_sha256'] == results['state_sha256']
  assert (newest['task'], newest['phase'], newest['rows']) == (1, 'evaluate', len(rows))
  assert newest['verified'] is False
  assert sum(facts['files'].values()) == facts['bytes'] == bytes_of(finished)
  assert facts['references']['finetune']['status'] == 'done'
  assert json.loads(json.dumps(facts)) == facts


def test_a_relative_directory_is_as_good(workdir, monkeypatch):
  monkeypatch.chdir(workdir.parent)
  facts = inspect_run(workdir.name, arrays=True)
  assert not facts['problems']
  assert all(each['verified'] for each in facts['checkpoints'])


def test_arrays_are_verified_and_nothing_is_touched(workdir):
  (workdir / 'checkpoints' / '99.orbax-checkpoint-tmp').mkdir()
  (workdir / 'checkpoints' / '1.deleted').mkdir()
  (workdir / 'checkpoints' / '1.deleted' / 'x').write_bytes(b'abc')
  (workdir / 'damaged' / '7').mkdir(parents=True)
  before = _stamps(workdir)
  facts = inspect_run(workdir, arrays=True)
  assert _stamps(workdir) == before
  assert all(each['verified'] for each in facts['checkpoints'])
  assert all(each['verified'] for each in facts['references']['finetune']['checkpoints'])
  assert facts['unfinished'] == {'1.deleted': 3, '99.orbax-checkpoint-tmp': 0}
  assert facts['damaged'] == {'7': 0}


def test_a_process_that_runs_it_is_told_and_not_disturbed(workdir):
  with locked(workdir):
    facts = inspect_run(workdir)
    assert (facts['status'], facts['process']) == ('running', os.getpid())
  assert inspect_run(workdir)['process'] is None
  with locked(workdir):  # Nothing holds it for having been looked at.
    pass


def test_an_old_lock_file_is_nobodys(tmp_path):
  done = subprocess.Popen([sys.executable, '-c', ''])
  done.wait()
  lock = tmp_path / '.lock'
  assert holder(lock) is None
  for text in (f'pid {done.pid}', '', 'pid x', '\udcff'):
    lock.write_bytes(text.encode(errors='surrogateescape'))
    assert holder(lock) is None


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='elsewhere it cannot be told')
def test_another_process_of_the_same_number_does_not_hold_it(tmp_path):
  (tmp_path / '.lock').write_text(f'pid {os.getpid()}')
  assert holder(tmp_path / '.lock') is None


def test_a_stopped_run_is_told_from_a_finished_one(interrupt, tmp_path):
  interrupt(9)
  with pytest.raises(Stopped):
    run(tiny_experiment('ease'), tmp_path, silent())
  facts = inspect_run(tmp_path)
  assert (facts['status'], facts['finished'], facts['total']) == ('stopped', 0, 2)
  assert facts['average_accuracy'] is None
  assert facts['checkpoints'][-1]['tick'] == 9


def _newest(workdir):
  return workdir / 'checkpoints' / max(os.listdir(workdir / 'checkpoints'), key=int)


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def _flip_arrays(workdir):
  for path in (_newest(workdir) / 'state' / 'd').iterdir():
    _flip(path)


DAMAGES = {
  'no configuration': (lambda w: (w / 'config.json').unlink(), 'config.json is missing'),
  'half a configuration': (
    lambda w: os.truncate(w / 'config.json', 40),
    'is damaged: ',
  ),
  'no results': (lambda w: (w / 'results.json').unlink(), 'results.json is missing'),
  'a list of results': (lambda w: (w / 'results.json').write_text('[1]'), 'expected an object'),
  'bytes for results': (lambda w: (w / 'results.json').write_bytes(b'\xff\xfe'), 'results.json is'),
  'a damaged row': (
    lambda w: (w / 'metrics.jsonl').write_text('{"kind": \n{"kind": "eval"}\n'),
    'metrics.jsonl, line 1, is damaged',
  ),
  'metadata': (lambda w: _flip(_newest(w) / '_CHECKPOINT_METADATA'), 'checkpoint '),
  'no metadata': (lambda w: (_newest(w) / '_CHECKPOINT_METADATA').unlink(), 'is damaged'),
  'a file for a checkpoint': (
    lambda w: (w / 'checkpoints/999').touch(),
    'checkpoint 999 is damaged',
  ),
  'arrays': (_flip_arrays, 'checkpoint '),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_damaged_is_told(damage, workdir):
  act, message = DAMAGES[damage]
  act(workdir)
  facts = inspect_run(workdir, arrays=True)
  problem = ' '.join(facts['problems'])  # A log that is cut is too short, as well.
  assert message in problem
  assert facts['references']['finetune']['problems'] == []
  assert json.dumps(facts)
  assert facts['leaves']  # Of the checkpoint before, where it must be.


def test_results_of_odd_types_do_not_matter(workdir):
  odd = {'accuracy_matrix': 3, 'tasks': {'a': 1}, 'metrics': [1], 'status': 'odd'}
  (workdir / 'results.json').write_text(json.dumps(odd))
  facts = inspect_run(workdir)
  assert (facts['status'], facts['finished'], facts['total']) == ('unknown', 0, 0)


def test_a_checkpoint_that_vanishes_meanwhile_is_left_out(workdir, monkeypatch):
  oldest = inspect_run(workdir)['checkpoints'][0]['tick']
  read = inspection.read_contents

  def vanishing(path):
    if int(path.name) == oldest:
      shutil.rmtree(path)
      raise Damaged('gone')
    return read(path)

  monkeypatch.setattr(inspection, 'read_contents', vanishing)
  facts = inspect_run(workdir)
  (left,) = facts['checkpoints']
  assert left['tick'] > oldest
  assert not facts['problems']


def test_other_directories_are_refused(tmp_path):
  with pytest.raises(ValueError, match='there is no directory'):
    inspect_run(tmp_path / 'absent')
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(ValueError, match=r"is no work directory: expected .*, found \['notes.txt'\]"):
    inspect_run(tmp_path)


def _without(name):
  return lambda path: shutil.rmtree(path / name)


def _emptied(path):
  shutil.rmtree(path / 'checkpoints')
  (path / 'checkpoints').mkdir()


def _of_other_weights(path):
  config = json.loads((path / 'config.json').read_text())
  config['identity']['backbone_sha256'] = '0'
  (path / 'config.json').write_text(json.dumps(config))


def _unfinished(path):
  results = json.loads((path / 'results.json').read_text())
  (path / 'results.json').write_text(json.dumps({**results, 'status': 'running'}))
  shutil.rmtree(path / 'checkpoints')


def _locked_by_a_directory(path):
  (path / '.lock').unlink()
  (path / '.lock').mkdir()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_without('checkpoints'), 'the checkpoints in .* are gone'),
    (_emptied, 'the checkpoints in .* are gone'),
    (_unfinished, 'the checkpoints in .* are gone'),
    (_without('references/finetune/checkpoints'), 'the checkpoints in .* are gone'),
    (_of_other_weights, 'differ in backbone_sha256|identity.backbone_sha256'),
    (lambda path: (path / 'config.json').unlink(), 'config.json is missing|without a config.json'),
    (_locked_by_a_directory, 'directory'),
  ],
)
def test_what_a_run_would_refuse_is_told(workdir, change, message):
  change(workdir)
  assert re.search(message, ' '.join(problems_of(inspect_run(workdir))))
  before = _stamps(workdir)
  experiment = tiny_experiment('ease', references={'finetune': tiny_method('finetune')})
  with pytest.raises((ValueError, OSError), match=message):
    run(experiment, workdir, silent(config={'flag': 1}))
  kept = ('metrics.jsonl', 'results.json')
  assert {k: v for k, v in _stamps(workdir).items() if k.name in kept} == {
    k: v for k, v in before.items() if k.name in kept
  }


def test_a_log_that_is_shorter_than_its_checkpoint_knows_is_told(workdir):
  log = workdir / 'metrics.jsonl'
  log.write_text(''.join(log.read_text().splitlines(keepends=True)[:-1]))
  assert 'rows, checkpoint' in ' '.join(problems_of(inspect_run(workdir)))
  log.write_text('{"kind": "train", "mine": 1}\n')
  assert "got ['mine'], too" in ' '.join(problems_of(inspect_run(workdir)))
