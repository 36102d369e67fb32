import pytest

from pecft_jax.data.table_files import read_table


def _read(folder, text, name='a.csv', **columns):
  (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return read_table(folder / name, **{'required': ['path', 'label'], **columns})


def test_quotes_empty_lines_and_byte_order_marks_are_read(tmp_path):
  text = '\ufeffpath,label,other\r\n"a, ""b"".png",cat,\r\n\r\n"two\nlines",dog,x\r\n'
  first, second = _read(tmp_path, text)
  assert first.values == {'path': 'a, "b".png', 'label': 'cat'}
  assert second.values['path'] == 'two\nlines'
  assert first.where.endswith('a.csv, line 2')


def test_numbers_are_names_in_json(tmp_path):
  text = '\ufeff{"path": "a", "label": 3}\n\n{"path": "b", "label": "x", "other": null}\n'
  rows = _read(tmp_path, text, 'a.jsonl')
  assert [row.values['label'] for row in rows] == ['3', 'x']
  assert rows[1].where.endswith('a.jsonl, line 3')


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('a.csv', '', 'a.csv has no rows'),
    ('a.csv', 'path,label\n', 'a.csv has no rows'),
    ('a.csv', 'path;label\na;b\n', r"got \['path;label'\]; .* columns are separated by commas"),
    ('a.csv', 'file,label\na,b\n', r"got \['file', 'label'\]; missing: \['path'\]"),
    ('a.csv', 'path,path\na,b\n', r"line 1: the columns \['path'\] come twice"),
    ('a.csv', 'path,label\na,b\nc\n', 'a.csv, line 3: expected 2 values, got 1'),
    ('a.csv', 'path,label\na,b,c\n', 'a.csv, line 2: expected 2 values, got 3'),
    ('a.csv', 'path,label\na,\n', "a.csv, line 2: expected text for 'label', got nothing"),
    ('a.csv', 'path,label,domain\na,b,c\nd,e,\n', "line 3: expected text for 'domain'"),
    ('a.csv', 'path,label\n"a,b\n', 'a.csv, line 2: unexpected end of data'),
    ('a.csv', b'path,label\n\xff,b\n', 'a.csv, after line .: expected UTF-8 text'),
    ('a.jsonl', '{"path": "a", "label": "b"}\n{"path"', 'a.jsonl, line 2, is damaged'),
    ('a.jsonl', '[1]\n', 'a.jsonl, line 1, is damaged: expected an object'),
    ('a.jsonl', '{"path": "a", "label": 1.5}', "line 1: expected text for 'label', got 1.5"),
    ('a.jsonl', '{"path": "a", "label": true}', "line 1: expected text for 'label', got True"),
    ('a.jsonl', '{"path": "a", "label": 1}\n{"path": "b"}', "line 2: .* 'label', got nothing"),
    ('a.txt', 'path,label\na,b\n', 'expected a file that ends in .csv or .jsonl, got .*a.txt'),
  ],
)
def test_what_is_no_table_is_named_with_its_line(tmp_path, name, text, message):
  with pytest.raises(ValueError, match=message):
    _read(tmp_path, text, name, optional=['domain'])


def test_a_table_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no file .*gone.csv'):
    read_table(tmp_path / 'gone.csv', ['path'])
