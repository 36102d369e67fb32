"""Who may use a work directory."""

import multiprocessing
import os

import pytest

from pecft_jax.files import write_json
from pecft_jax.workdir.claim import claim, locked, read_config

CONFIG = {'settings': {'rate': 0.1, 'layers': (1, 2)}, 'seed': 0, 'identity': {'a': 'x'}}


def _try(directory, answers):
  try:
    with locked(directory):
      answers.put('locked')
  except ValueError as error:
    answers.put(str(error))


def _other_process(directory):
  context = multiprocessing.get_context('spawn')
  answers = context.Queue()
  process = context.Process(target=_try, args=(directory, answers))
  process.start()
  answer = answers.get()
  process.join()
  return answer


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path):
  directory = tmp_path / 'new'
  with locked(directory):
    assert f'in use by another process (pid {os.getpid()})' in _other_process(directory)
  assert _other_process(directory) == 'locked'


def test_the_lock_goes_with_an_error(tmp_path):
  with pytest.raises(KeyError), locked(tmp_path):
    raise KeyError
  with locked(tmp_path):
    pass


def test_the_same_configuration_comes_back(tmp_path):
  claim(tmp_path, CONFIG)
  claim(tmp_path, {**CONFIG, 'settings': {'layers': [1, 2], 'rate': 0.1}})


def test_differing_keys_are_named(tmp_path):
  claim(tmp_path, CONFIG)
  other = {'settings': {'rate': 0.2, 'layers': (1, 2), 'new': 1}, 'seed': 0, 'identity': {}}
  with pytest.raises(ValueError) as info:
    claim(tmp_path, other)
  message = str(info.value)
  assert 'settings.rate: there 0.1, here 0.2' in message
  assert 'settings.new: there null, here 1' in message
  assert 'identity.a: there "x", here null' in message
  assert 'layers' not in message
  assert 'seed' not in message


@pytest.mark.parametrize('content', [b'{"settings": ', b'\xff\xfe\xfd', b''])
def test_a_damaged_configuration_is_told(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(ValueError, match=r'config.json.* is damaged'):
    claim(tmp_path, CONFIG)


def test_json_that_is_no_configuration_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text('[1]')
  with pytest.raises(ValueError, match=r'config.json is damaged: expected an object, got \[1\]'):
    claim(tmp_path, CONFIG)


@pytest.mark.parametrize('name', ['checkpoints', 'results.json'])
def test_a_run_without_its_configuration_is_not_taken_over(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(ValueError, match=r'holds a run without a config.json'):
    claim(tmp_path, CONFIG)


def test_a_changed_file_is_refused_unless_it_is_accepted(tmp_path):
  claim(tmp_path, CONFIG, files={'a.py': '1', 'b.py': '2'})
  now = {'a.py': '1', 'b.py': '3'}
  with pytest.raises(ValueError, match=r'b.py was changed since .* --accept-changes'):
    claim(tmp_path, CONFIG, files=now)
  (note,) = claim(tmp_path, CONFIG, files=now, accept_changes=True)
  assert note.startswith('goes on although b.py was changed')
  config = read_config(tmp_path)
  assert config['accepted'][0]['files'] == {'b.py': {'there': '2', 'here': '3'}}
  assert claim(tmp_path, CONFIG, files=now) == []


def test_another_environment_is_said_once(tmp_path):
  claim(tmp_path, CONFIG)
  config = read_config(tmp_path)
  config['environment']['versions']['jax'] = '0.0.1'
  write_json(tmp_path / 'config.json', config)
  (note,) = claim(tmp_path, CONFIG)
  assert note.startswith('resumed in another environment: jax 0.0.1 -> ')
  assert claim(tmp_path, CONFIG) == []
  assert len(read_config(tmp_path)['resumed']) == 1


def test_of_another_factory_the_name_is_said_and_no_arguments(tmp_path):
  claim(tmp_path, {'method': {'name': 'ewc', 'strength': 1.0}})
  with pytest.raises(ValueError, match=r'method.name: there "ewc", here "er"') as info:
    claim(tmp_path, {'method': {'name': 'er', 'size': 5}})
  assert 'size' not in str(info.value)
