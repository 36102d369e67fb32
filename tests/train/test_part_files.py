"""Parts on disk: read whole or not at all, up to a bound."""

import pytest

from pecft_jax.train.part_files import PartFiles


@pytest.fixture
def told():
  """What was told."""
  return []


@pytest.fixture
def files(tmp_path, told):
  """`files(limit)`: the directory, read anew."""
  return lambda limit=1000: PartFiles(tmp_path / 'parts', limit, told.append)


def test_contents_are_there_again(files, tmp_path):
  first = files()
  first.put('a', b'one')
  first.put('a', b'two')  # By its name it is the same.
  assert first.get('a') == files().get('a') == b'one'
  assert files().get('b') is None
  assert [path.name for path in (tmp_path / 'parts').iterdir()] == ['a']


@pytest.mark.parametrize('raw', [b'', b'x' * 20, b'x' * 35])
def test_what_is_damaged_is_removed(raw, files, tmp_path):
  files().put('a', b'one')
  (tmp_path / 'parts' / 'a').write_bytes(raw)
  again = files()
  assert again.get('a') is None
  again.put('a', b'new')
  assert again.get('a') == b'new'


def test_files_under_another_name_are_not_read(files, tmp_path):
  files().put('a', b'one')
  (tmp_path / 'parts' / 'a').rename(tmp_path / 'parts' / 'b')
  assert files().get('b') is None


def test_the_directory_may_vanish(files, tmp_path):
  first = files()
  first.put('a', b'one')
  (tmp_path / 'parts' / 'a').unlink()
  (tmp_path / 'parts').rmdir()
  assert first.get('a') is None
  first.put('b', b'two')
  assert first.get('b') == b'two'


def test_the_bound_holds_for_files_that_were_there(files, tmp_path):
  first = files(2 * 35)
  for name in 'abc':
    first.put(name, b'one')
  there = lambda: sorted(path.name for path in (tmp_path / 'parts').iterdir())
  assert there() == ['a', 'b']
  files(35)
  assert there() == ['a']


def test_unfinished_files_are_removed(files, tmp_path):
  files().put('a', b'one')
  (tmp_path / 'parts' / 'b.part').write_bytes(b'tw')
  files()
  assert [path.name for path in (tmp_path / 'parts').iterdir()] == ['a']


def test_a_disk_that_cannot_be_written_is_told_of_once(files, tmp_path, told):
  (tmp_path / 'parts').write_bytes(b'no directory')
  full = files()
  full.put('a', b'one')
  full.put('b', b'two')
  assert full.get('a') is None
  assert len(told) == 1
  assert 'not kept on disk' in told[0]
