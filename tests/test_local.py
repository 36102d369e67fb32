import pathlib

import pytest

from pecft_jax.local import local_path, work_directory


@pytest.mark.parametrize('url', ['gs://bucket/run', 's3://bucket/a', 'file:///tmp/a'])
@pytest.mark.parametrize('kind', [str, pathlib.Path])
def test_a_url_is_refused_however_it_is_given(url, kind):
  with pytest.raises(ValueError, match='expected a local path, got the URL'):
    local_path(kind(url))


def test_an_empty_text_is_not_the_current_directory():
  with pytest.raises(ValueError, match='expected a path, got an empty text'):
    local_path('')
  assert local_path('.') == pathlib.Path('.')


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


def test_a_path_of_other_bytes_than_utf8_is_refused(monkeypatch, tmp_path):
  for kind in (str, pathlib.Path):
    with pytest.raises(ValueError, match=r"expected a path in UTF-8, got 'a\\udcff'"):
      local_path(kind('a\udcff'))
  (tmp_path / 'a\udcff').mkdir()
  monkeypatch.chdir(tmp_path / 'a\udcff')
  with pytest.raises(ValueError, match='expected a path in UTF-8'):
    work_directory('run')
