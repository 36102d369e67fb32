"""Logs that are cut where a checkpoint knows of no more."""

import csv
import json
import os
import sys
import types

import pytest

from pecft_jax.workdir.record import Record, tensorboard

ROWS = [
  {'kind': 'train', 'task': 0, 'step': 4, 'loss': 0.1 + 0.2, 'seconds': 0.5},
  {'kind': 'train', 'task': 0, 'step': 8, 'loss': 0.25, 'seconds': 0.75},
  {'kind': 'eval', 'task': 0, 'accuracy': 0.5, 'evaluated': [0.5], 'seconds': 1.0},
]


def _write(directory, rows, start=0):
  record = Record(directory, start)
  for row in rows:
    record.write(row)
  record.sync()
  record.close()


def _read(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  with open(directory / 'metrics.csv', newline='') as file:
    return [json.loads(line) for line in lines], list(csv.DictReader(file))


def test_rows_come_back(tmp_path):
  _write(tmp_path, ROWS)
  rows, table = _read(tmp_path)
  assert rows == ROWS
  assert [(row['kind'], row['loss']) for row in table] == [
    ('train', repr(0.1 + 0.2)),
    ('train', '0.25'),
    ('eval', ''),
  ]


def test_rows_beyond_the_checkpoint_are_cut_off(tmp_path):
  _write(tmp_path, [*ROWS, ROWS[0]])
  _write(tmp_path, ROWS[1:], start=1)
  rows, table = _read(tmp_path)
  assert rows == ROWS
  assert len(table) == 3


def test_half_a_row_is_none(tmp_path):
  _write(tmp_path, ROWS)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"kind": "tr')
  _write(tmp_path, [], start=3)
  assert _read(tmp_path)[0] == ROWS


def test_missing_rows_are_an_error(tmp_path):
  _write(tmp_path, ROWS[:2])
  with pytest.raises(
    ValueError, match=r'metrics.jsonl has 2 rows, the checkpoint was made after 3'
  ):
    Record(tmp_path, 3)
  assert _read(tmp_path)[0] == ROWS[:2]  # Nothing was touched.


@pytest.mark.parametrize('line', ['{"kind": \n', '[1]\n', '{"what": 1}\n', '\udcff\n'])
def test_damaged_rows_are_an_error_by_line(tmp_path, line):
  _write(tmp_path, ROWS[:1])
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(line.encode(errors='surrogateescape'))
  with pytest.raises(ValueError, match=r'metrics.jsonl, line 2, is damaged'):
    Record(tmp_path, 2)


def test_writers_get_every_row(tmp_path):
  seen = []
  record = Record(tmp_path, writers=(seen.append, lambda row: None))
  record.write(ROWS[0])
  record.close()
  assert seen == ROWS[:1]
  assert record.rows == 1


@pytest.mark.parametrize('name', ['_json', '_csv_file'])
def test_a_full_disk_is_told_with_the_file(name, tmp_path):
  record = Record(tmp_path)
  path = getattr(record, name).name
  with open('/dev/full', 'w') as full:
    os.dup2(full.fileno(), getattr(record, name).fileno())
  with pytest.raises(OSError, match='No space left on device') as info:
    record.write(ROWS[0])
  assert info.value.filename == str(path)
  record.close()  # Nothing more to tell.


def test_tensorboard_is_an_extra(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ValueError, match=r"pip install 'pecft_jax\[tensorboard\]'"):
    tensorboard(tmp_path)


def test_tensorboard_events(monkeypatch, tmp_path):
  scalars = []

  class SummaryWriter:
    def __init__(self, directory):
      assert directory == str(tmp_path)

    def add_scalar(self, name, value, step):
      scalars.append((name, value, step))

    def flush(self):
      pass

  monkeypatch.setitem(
    sys.modules, 'tensorboardX', types.SimpleNamespace(SummaryWriter=SummaryWriter)
  )
  write = tensorboard(tmp_path)
  for row in ROWS:
    write(row)
  assert scalars == [
    ('train/task_0/loss', 0.1 + 0.2, 4),
    ('train/task_0/loss', 0.25, 8),
    ('eval/accuracy', 0.5, 0),
  ]
