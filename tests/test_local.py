import os
import pathlib

import pytest

from pecft_jax.local import local_path, read_object, work_directory


@pytest.mark.parametrize('url', ['gs://bucket/run', 's3://bucket/a', 'file:///tmp/a'])
@pytest.mark.parametrize('kind', [str, pathlib.Path])
def test_a_url_is_refused_however_it_is_given(url, kind):
  with pytest.raises(ValueError, match='expected a local path, got the URL'):
    local_path(kind(url))


@pytest.mark.parametrize(
  'name', ['a:b', 'lr=1e-3,peft=lora', './gs:/bucket', 'C:', '~nobody-here/x']
)
def test_a_name_that_only_looks_like_one_stays(name):
  assert local_path(name) == pathlib.Path(name)


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert local_path('~/runs') == tmp_path / 'runs'
  assert local_path(pathlib.Path('~/runs')) == tmp_path / 'runs'


@pytest.mark.parametrize('name', ['a[b]', 'seed[0]/run', 'what?', 'star*', 'a\\b'])
def test_a_path_that_loses_checkpoints_is_refused_by_the_character(name):
  with pytest.raises(ValueError, match=r'expected a path without .*, found '):
    work_directory(name)


def test_the_directories_above_count_too(monkeypatch, tmp_path):
  (tmp_path / 'sweep[1]').mkdir()
  monkeypatch.chdir(tmp_path / 'sweep[1]')
  with pytest.raises(ValueError, match=r'found \['):
    work_directory('run')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', r"\['c'\] come twice"),
    ('{', 'is not a card: Expecting'),
    ('[1]', 'is not a card: expected an object, got list'),
    ('[' * 100_000, 'is not a card: '),
    ('\udcff', 'is not a card: '),
  ],
)
def test_json_that_means_nothing_or_two_things_is_refused(text, message, tmp_path):
  path = tmp_path / 'card.json'
  path.write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(ValueError, match=message) as info:
    read_object(path, 'a card')
  assert str(path) in str(info.value)


def test_json_that_is_no_file_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')  # Reading it would wait for ever.
  for path in (tmp_path, tmp_path / 'pipe', tmp_path / 'absent'):
    with pytest.raises(ValueError, match='there is no such file'):
      read_object(path, 'a card')
