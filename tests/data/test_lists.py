import json

import numpy as np
import pytest
from PIL import Image

from pecft_jax import data

ROWS = [('a 1.png', 'dog', 'day', 'train'), ('ü/b.png', 'cat', 'night', 'train'),
        ('c.png', 'dog', 'day', 'test')]  # fmt: skip
COLUMNS = ('path', 'label', 'domain', 'split')


@pytest.fixture
def folder(tmp_path):
  for i, (path, *_) in enumerate(ROWS):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    Image.new('L', (6, 6), i).save(tmp_path / path)
  return tmp_path


def _csv(folder, columns=COLUMNS, rows=ROWS, name='list.csv'):
  lines = [','.join(columns), *(','.join(row[: len(columns)]) for row in rows)]
  (folder / name).write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return folder / name


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_paths_labels_domains_and_splits_are_read(folder, kind):
  path = _csv(folder)
  if kind == 'jsonl':
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in ROWS]
    path = folder / 'list.jsonl'
    path.write_text('\n'.join(lines))
  source = data.image_list(path, size=6, channels=1)
  assert (source.name, source.class_names, source.domain_names) == (
    'list', ('cat', 'dog'), ('day', 'night'),
  )  # fmt: skip
  assert source.labels.tolist() == [1, 0, 1] and source.domains.tolist() == [0, 1, 0]
  assert source.inputs[np.array([2, 1, 0])][:, 0, 0, 0].tolist() == [2, 1, 0]
  # A split has the classes and domains of the whole file.
  test = data.image_list(path, size=6, channels=1, split='test')
  assert test.labels.tolist() == [1] and test.class_names == source.class_names
  assert test.domains.tolist() == [0] and test.domain_names == source.domain_names


def test_paths_are_relative_to_the_list_or_the_root(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(folder / 'ü')
  (folder / 'lists').mkdir()
  path = _csv(folder / 'lists', COLUMNS[:2])
  source = data.image_list('../lists/list.csv', size=4, channels=1, root='..')
  assert source.domains is None and len(source.inputs[np.arange(3)]) == 3
  with pytest.raises(ValueError, match=r'list.csv, line 2: no file .*lists.a 1.png'):
    data.image_list(path, size=4, channels=1)
  absolute = [(str(folder / path), *others) for path, *others in ROWS]
  assert len(data.image_list(_csv(folder / 'lists', rows=absolute), size=4, channels=1).labels) == 3


def test_classes_of_another_source_can_be_asked_for(folder):
  path = _csv(folder, COLUMNS[:2])
  found = data.image_list(path, size=4, channels=1, class_names=['fox', 'dog', 'cat'])
  assert found.labels.tolist() == [1, 2, 1] and found.class_names == ('fox', 'dog', 'cat')
  with pytest.raises(ValueError, match=r"unknown class 'cat'"):
    data.image_list(path, size=4, channels=1, class_names=['dog'])
  with pytest.raises(ValueError, match='expected a column domain with the domain_names'):
    data.image_list(path, size=4, channels=1, domain_names=['day'])


def test_a_split_that_is_not_there_is_refused(folder):
  with pytest.raises(ValueError, match=r"list.csv: unknown split 'tset'; did you mean 'test'"):
    data.image_list(_csv(folder), size=4, channels=1, split='tset')
  with pytest.raises(ValueError, match=r"expected a column split for split='test', got none"):
    data.image_list(_csv(folder, COLUMNS[:3]), size=4, channels=1, split='test')
