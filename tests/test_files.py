"""JSON and JSON lines: whole files, and errors that name file and line."""

import errno
import json
import os

import numpy as np
import pytest

from pecft_jax.files import (
  json_line,
  plain,
  read_json,
  read_object,
  read_rows,
  replace_text,
  replacing,
  write_json,
)


def test_files_are_replaced_whole(tmp_path):
  path = tmp_path / 'a.json'
  replace_text(path, 'old')
  with pytest.raises(UnicodeEncodeError):
    replace_text(path, 'new \udcff')
  assert path.read_text() == 'old'
  write_json(path, {'b': float('nan'), 'a': np.float32(0.5)})
  assert path.read_text() == '{\n "b": null,\n "a": 0.5\n}\n'
  assert read_json(path) == {'b': None, 'a': 0.5}


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  with pytest.raises(OSError) as info:
    write_json(tmp_path / 'absent' / 'a.json', {})
  assert info.value.filename.startswith(str(tmp_path / 'absent' / 'a.json'))


def test_plain_values():
  value = {1: (np.int64(2), np.arange(2), np.array(3.0)), 'x': [float('inf'), None, True, 'y']}
  assert plain(value) == {'1': [2, [0, 1], 3.0], 'x': [None, None, True, 'y']}
  assert json.loads(json_line(value)) == plain(value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": 1,\n "b": }', r'a.json, line 2, is damaged: Expecting value at column 7'),
    (b'', r'a.json, line 1, is damaged'),
    (b'\xff\xfe', r'a.json is damaged: byte 0 is not UTF-8'),
    (b'[1]', r'a.json is damaged: expected an object, got \[1\]'),
    (b'[' * 100_000, r'a.json is damaged'),
    (b'{"a": ' + b'9' * 10_000 + b'}', r'a.json is damaged'),
  ],
)
def test_damage_is_told_by_file_and_line(tmp_path, content, message):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read_json(tmp_path / 'a.json')


def test_no_file_is_another_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    read_json(tmp_path / 'a.json')
  assert read_rows(tmp_path / 'a.jsonl') == []


def test_rows_tell_their_line(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"a": 1}\n{"a":\n\xff\n[2]\n')
  first, *damaged = read_rows(path)
  assert first == ('{"a": 1}', {'a': 1}, None)
  assert [row.value for row in damaged] == [None] * 3
  for number, row in enumerate(damaged, 2):
    assert row.problem.startswith(f'{path}, line {number}, is damaged: ')


def test_a_last_line_in_the_making_is_left_out(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"a": 1}\n{"a": ')
  assert [row.value for row in read_rows(path)] == [{'a': 1}]
  path.write_text('{"a": 1}\n{"a": 2}')
  assert [row.value for row in read_rows(path)] == [{'a': 1}, {'a': 2}]


def test_separators_of_lines_within_a_string_do_not_end_a_row(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps({'a': '\u2028\x85'}, ensure_ascii=False) + '\n')
  assert [row.value for row in read_rows(path)] == [{'a': '\u2028\x85'}]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', r"\['c'\] come twice"),
    ('{', r'card.json, line 1, is not a card: Expecting'),
    ('{"a": "\\ud800"}', 'is not a card: .*ud800. is no character'),
    ('[1]', 'is not a card: expected an object, got'),
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


def test_a_file_of_many_writes_is_whole_or_as_it_was(tmp_path):
  path = tmp_path / 'a.txt'
  with replacing(path) as file:
    file.write(b'a')
    assert not path.exists()
    file.write(b'b')
  assert path.read_text() == 'ab'
  with pytest.raises(KeyError), replacing(path) as file:
    file.write(b'c')
    raise KeyError
  assert path.read_text() == 'ab'
  assert [each.name for each in tmp_path.iterdir()] == ['a.txt']


def test_an_error_of_writing_names_the_file_and_others_stay(tmp_path):
  full = pytest.raises(OSError, match=r'No space left on device: .*a\.txt\.part')
  with full, replacing(tmp_path / 'a.txt'):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with pytest.raises(OSError, match=r"Permission denied: 'b'"), replacing(tmp_path / 'a.txt'):
    raise OSError(errno.EACCES, os.strerror(errno.EACCES), 'b')
