"""Predictions of the command line are those of the learner, in order, and quoted."""

import csv
import io
import json
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_runs import tiny_method, tiny_world

from pecft_jax import cli
from pecft_jax.data import image_files, resize
from pecft_jax.learners import Learned, Learner, load_run, save_bundle
from pecft_jax.train.state import no_task


def predicted(capsys, *command):
  """Rows of the CSV on standard output."""
  assert cli.main(['predict', *map(str, command)]) == 0
  said = capsys.readouterr()
  assert said.err == ''
  return list(csv.DictReader(io.StringIO(said.out, newline='')))


def failing(capsys, *command):
  assert cli.main(['predict', *map(str, command)]) == 1
  said = capsys.readouterr()
  assert said.out == ''
  return ' '.join(said.err.split())


def best(learner, images):
  """The label and the probability of each image."""
  chances = learner.probabilities(images)
  return [(learner.class_names[row.argmax()], float(row.max())) for row in chances]


def read(rows):
  return [(row['label'], float(row['probability'])) for row in rows]


def test_a_folder_is_predicted_as_the_learner_does(taught, capsys):
  rows = predicted(capsys, taught.workdir, taught.folder)
  files = image_files(taught.folder, size=4, channels=1)
  assert [row['input'] for row in rows] == [str(path) for path in files.paths]
  images = np.stack([np.asarray(Image.open(path))[..., None] for path in files.paths])
  expected = best(load_run(taught.workdir), images)
  assert [label for label, _ in read(rows)] == [label for label, _ in expected]
  chances = [[p for _, p in found] for found in (read(rows), expected)]
  np.testing.assert_array_equal(np.float32(chances[0]), np.float32(chances[1]))


def test_arrays_and_files_are_read_in_the_order_given(taught, capsys):
  first = sorted(taught.folder.rglob('*.png'))[0]
  rows = predicted(capsys, taught.workdir, first, taught.arrays, first, '--batch-size', '3')
  count = len(taught.test.labels)
  names = [f'{taught.arrays}[{i}]' for i in range(count)]
  assert [row['input'] for row in rows] == [str(first), *names, str(first)]
  expected = best(load_run(taught.workdir), taught.test.inputs)
  assert [label for label, _ in read(rows[1:-1])] == [label for label, _ in expected]
  assert rows[0] == rows[-1]


def test_the_next_classes_follow_and_json_lines_say_the_same(taught, capsys):
  command = taught.workdir, taught.arrays, '--top', '3'
  rows = predicted(capsys, *command)
  assert cli.main(['predict', *map(str, command), '--format', 'jsonl']) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  chances = load_run(taught.workdir).probabilities(taught.test.inputs)
  for row, line, all_chances in zip(rows, lines, chances, strict=True):
    assert list(row) == [
      'input', 'label', 'probability', 'label_2', 'probability_2', 'label_3', 'probability_3',
    ]  # fmt: skip
    found = [(line['label'], line['probability'])]
    found += [(each['label'], each['probability']) for each in line['next']]
    assert [label for label, _ in found] == [row[f'label{k}'] for k in ('', '_2', '_3')]
    np.testing.assert_array_equal(np.float32([p for _, p in found]), np.sort(all_chances)[:0:-1])


def test_after_a_task_its_classes_alone_are_answered(taught, capsys):
  rows = predicted(capsys, taught.workdir, taught.arrays, '--after-task', '1')
  assert {row['label'] for row in rows} <= set(load_run(taught.workdir, 1).classes)
  text = failing(capsys, taught.workdir, taught.arrays, '--after-task', '1', '--top', '3')
  assert 'expected --top of 1 to 2, the classes learned, got 3' in text


def test_a_bundle_predicts_what_the_run_does(taught, tmp_path, capsys):
  save_bundle(load_run(taught.workdir), tmp_path / 'bundle')
  rows = [predicted(capsys, at, taught.arrays) for at in (tmp_path / 'bundle', taught.workdir)]
  assert rows[0] == rows[1]


ODD = [
  'a, b.png',
  'say "x".png',
  'naïve ünï 日本.png',
  '-dash.png',
  'two\nlines.png',
  'cr\rhere.png',
]


def test_odd_names_of_files_are_quoted(taught, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name in ODD:
    Image.new('L', (4, 4)).save(name)
  rows = predicted(capsys, taught.workdir, *(n for n in ODD if n[0] != '-'), '--', '-dash.png')
  assert sorted(row['input'] for row in rows) == sorted(ODD)
  assert predicted(capsys, taught.workdir, './-dash.png')[0]['input'] == '-dash.png'
  assert len(predicted(capsys, taught.workdir, '.')) == len(ODD)


def test_a_file_appears_whole_or_not_at_all(taught, tmp_path, capsys):
  for i in range(40):
    Image.new('L', (4, 4)).save(tmp_path / f'{i:02}.png')
  out = tmp_path / 'out.jsonl'
  command = ['predict', str(taught.workdir), str(tmp_path), '--out', str(out), '--batch-size', '2']
  assert cli.main(command) == 0
  said = capsys.readouterr()
  assert said.out == ''
  assert f'40 predictions of simplecil after 2 tasks → {out}' in said.err
  before = out.read_text()
  assert len([json.loads(line) for line in before.splitlines()]) == 40
  # Its header is good: only decoding it finds the damage.
  whole = (tmp_path / '39.png').read_bytes()
  at = whole.index(b'IDAT')
  (tmp_path / '39.png').write_bytes(whole[: at + 6] + bytes(8) + whole[at + 14 :])
  assert cli.main(command) == 1
  assert '39.png cannot be read as an image' in capsys.readouterr().err
  assert out.read_text() == before
  assert not list(tmp_path.glob('*.part'))


def test_what_is_no_image_is_refused_before_anything_is_written(taught, tmp_path, capsys):
  for i in range(40):
    Image.new('L', (4, 4)).save(tmp_path / f'{i:02}.png')
  (tmp_path / '39.png').write_text('text')
  assert '39.png cannot be read as an image' in failing(capsys, taught.workdir, tmp_path)


def test_other_modes_are_converted_on_request(taught, tmp_path, capsys):
  Image.new('RGB', (9, 7), 'red').save(tmp_path / 'a.png')
  assert 'expected grey images' in failing(capsys, taught.workdir, tmp_path / 'a.png')
  assert len(predicted(capsys, taught.workdir, tmp_path / 'a.png', '--convert')) == 1


def test_arrays_of_another_size_are_scaled(taught, tmp_path, capsys):
  images = taught.test.inputs.repeat(2, 1).repeat(2, 2)
  np.savez(tmp_path / 'large.npz', images=images)
  rows = predicted(capsys, taught.workdir, tmp_path / 'large.npz')
  scaled = resize(taught.test._replace(inputs=images), 4).inputs[np.arange(len(images))]
  expected = best(load_run(taught.workdir), scaled)
  assert [row['label'] for row in rows] == [label for label, _ in expected]


@pytest.mark.parametrize(
  ('inputs', 'message'),
  [
    (['absent.png'], 'no file or folder absent.png'),
    (['absent.npz'], "no file absent.npz; expected an .npz with the key 'images'"),
    (['empty'], 'holds no images'),
    (['empty', '--tokenizer', 'a.json'], 'reads images, which --tokenizer is not for'),
    (['empty', '--cut'], 'reads images, which --cut is not for'),
    (['empty', '--format', 'json'], "did you mean 'jsonl'"),
    (['empty', '--top', '0'], 'expected --top of 1 to 4'),
    (['a.png', '--batch-size', '0'], 'expected a batch_size of at least 1'),
    (['a.png', '--out', 'absent/a.csv'], 'No such file or directory'),
  ],
)
def test_mistakes_are_refused(inputs, message, taught, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  Image.new('L', (4, 4)).save('a.png')
  assert message in failing(capsys, taught.workdir, *inputs)


class _Input:
  def __init__(self, text):
    self.buffer = io.BytesIO(text.encode())


def test_texts_are_lines_tables_or_standard_input(reader, tmp_path, monkeypatch, capsys):
  tokenizer = '--tokenizer', reader / 'tokenizer.json'
  (tmp_path / 'a.txt').write_text('very good\nbad\n')
  (tmp_path / 'a.jsonl').write_text('{"text": "very good"}\n\n{"text": "bad"}\n')
  monkeypatch.setattr(sys, 'stdin', _Input('very good\r\nbad'))
  given = [str(tmp_path / 'a.txt'), '-', str(tmp_path / 'a.jsonl')]
  rows = predicted(capsys, reader / 'run', *given, *tokenizer)
  lines = [1, 2, 1, 2, 1, 3]
  assert [row['input'] for row in rows] == [f'{given[i // 2]}:{n}' for i, n in enumerate(lines)]
  expected = best(load_run(reader / 'run'), np.int32([[3, 1, 5, 5, 5], [2, 5, 5, 5, 5]]))
  assert [label for label, _ in read(rows)] == 3 * [label for label, _ in expected]

  (tmp_path / 'a.txt').write_text('very very very very very good')
  text = failing(capsys, reader / 'run', tmp_path / 'a.txt', *tokenizer)
  assert 'a.txt, line 1: 6 tokens, expected at most 5' in text
  with pytest.warns(UserWarning, match='are cut off'):
    assert len(predicted(capsys, reader / 'run', tmp_path / 'a.txt', *tokenizer, '--cut')) == 1
  assert '--tokenizer names' in failing(capsys, reader / 'run', tmp_path / 'a.txt')
  assert 'got it twice' in failing(capsys, reader / 'run', '-', '-', *tokenizer)
  assert 'which --convert is not for' in failing(capsys, reader / 'run', '-', '--convert')


def test_answers_that_are_no_classes_are_refused(tmp_path, capsys):
  model, method = tiny_world('texts').model, tiny_method('language_model')
  params, memory = jax.eval_shape(method.init, jax.random.key(0), model.params)
  zeros = lambda tree: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
  state = Learned(*zeros((params, memory)), no_task(method.capacity), np.int32(0))
  learner = Learner(model=model, method=method, state=state, class_names=('all',), tasks=0)
  save_bundle(learner, tmp_path / 'bundle')
  text = failing(capsys, tmp_path / 'bundle', 'a.txt')
  assert 'next_tokens, which has no classes' in text


def test_a_reader_that_goes_away_is_no_error(taught, monkeypatch, capsys):
  read, write = os.pipe()
  os.close(read)
  with os.fdopen(write, 'w') as closed:
    monkeypatch.setattr(sys, 'stdout', closed)
    assert cli.main(['predict', str(taught.workdir), str(taught.folder)]) == 141
  assert capsys.readouterr().err == ''
