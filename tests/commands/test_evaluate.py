"""Evaluations of the command line agree with those of the run, and with counts by hand."""

import collections
import json
import shutil

import numpy as np
import pytest
from tiny_runs import quiet

from pecft_jax import cli, data
from pecft_jax.commands.evaluate import evaluated, print_evaluated
from pecft_jax.learners import load_run
from pecft_jax.metrics import wilson_interval


def found(capsys, *command):
  assert cli.main(['evaluate', *map(str, command), '--json']) == 0
  return json.loads(capsys.readouterr().out)


def failing(capsys, *command):
  assert cli.main(['evaluate', *map(str, command)]) == 1
  return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('form', ['folder', 'table', 'arrays'])
def test_the_test_set_of_the_run_has_the_accuracy_of_its_results(form, taught, capsys):
  outcome = found(capsys, taught.workdir, '--data', getattr(taught, form))
  results = json.loads((taught.workdir / 'results.json').read_text())
  # Each task has as many test examples.
  assert outcome['accuracy'] == pytest.approx(np.mean(results['accuracy_matrix'][-1]))
  assert 0.25 < outcome['accuracy'] < 1
  assert (outcome['tasks'], outcome['examples'], outcome['not_learned']) == (2, 20, {})


def test_counts_are_those_by_hand(taught, capsys):
  learner = load_run(taught.workdir)
  outcome = found(capsys, taught.workdir, '--data', taught.arrays, '--batch-size', '7')
  answers = [learner.class_names[i] for i in learner.predict(taught.test.inputs).argmax(-1)]
  truth = [taught.test.class_names[i] for i in taught.test.labels]
  pairs = collections.Counter(zip(truth, answers, strict=True))
  names, matrix = outcome['confusion']['classes'], outcome['confusion']['matrix']
  assert names == list(learner.class_names)
  for (truly, said), count in pairs.items():
    assert matrix[names.index(truly)][names.index(said)] == count
  assert np.sum(matrix) == len(truth)
  assert outcome['correct'] == sum(n for (a, b), n in pairs.items() if a == b)
  for name, of in outcome['per_class'].items():
    assert (of['examples'], of['correct']) == (truth.count(name), pairs[name, name])
    assert of['accuracy'] == pairs[name, name] / truth.count(name)
  assert outcome['interval'] == list(wilson_interval(outcome['correct'], 20))


def test_classes_not_learned_yet_are_left_out_and_named(taught, capsys):
  command = taught.workdir, '--data', taught.folder, '--after-task', '1'
  outcome = found(capsys, *command)
  first = load_run(taught.workdir, 1).classes
  assert outcome['confusion']['classes'] == list(first)
  assert outcome['examples'] == 10
  assert outcome['not_learned'] == {n: 5 for n in taught.test.class_names if n not in first}
  results = json.loads((taught.workdir / 'results.json').read_text())
  assert outcome['accuracy'] == pytest.approx(results['accuracy_matrix'][0][0])
  assert cli.main(['evaluate', *map(str, command)]) == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert 'left out: 10 examples of classes not learned yet' in text
  assert 'among 2 classes learned so far' in text


def test_a_set_of_classes_not_learned_yet_alone_is_refused(taught, tmp_path, capsys):
  later = load_run(taught.workdir).classes[2]
  shutil.copytree(taught.folder / later, tmp_path / 'test' / later)
  text = failing(capsys, taught.workdir, '--data', tmp_path / 'test', '--after-task', '1')
  assert 'has no example of a class learned so far' in text


def test_a_class_that_the_run_does_not_know_is_refused_with_a_suggestion(taught, tmp_path, capsys):
  shutil.copytree(taught.folder / 'plain', tmp_path / 'test' / 'plane')
  text = failing(capsys, taught.workdir, '--data', tmp_path / 'test')
  assert "unknown class 'plane'; did you mean 'plain'?" in text


def test_some_of_the_classes_are_enough(taught, tmp_path, capsys):
  shutil.copytree(taught.folder / 'plain', tmp_path / 'test' / 'plain')
  outcome = found(capsys, taught.workdir, '--data', tmp_path / 'test')
  assert list(outcome['per_class']) == ['plain']
  assert outcome['examples'] == 5


def test_tables_show_each_class_and_the_matrix(taught, tmp_path, capsys):
  out = tmp_path / 'out.json'
  command = ['evaluate', str(taught.workdir), '--data', str(taught.folder), '--out', str(out)]
  assert cli.main(command) == 0
  text = capsys.readouterr().out
  outcome = json.loads(out.read_text())
  assert f'{100 * outcome["accuracy"]:.1f} % of 20 examples (95 % interval' in text
  for part in ('Each class', 'Confusion', *taught.test.class_names):
    assert part in text
  assert outcome == found(capsys, *command[1:4])


def test_of_many_classes_the_most_frequent_errors_are_shown():
  names = [f'[{i}]' for i in range(20)]
  matrix = np.eye(20, dtype=int)
  matrix[3, 5] = 7
  outcome = {
    'method': 'ease', 'tasks': 5, 'examples': 27, 'correct': 20, 'accuracy': 20 / 27,
    'interval': [0.5, 0.9], 'not_learned': {}, 'per_class': {},
    'confusion': {'classes': names, 'matrix': matrix.tolist()},
  }  # fmt: skip
  console = quiet()
  print_evaluated(outcome, console)
  text = console.file.getvalue()
  assert text.split('The most frequent errors')[1].split() == [
    'class', 'taken', 'for', 'n', '[3]', '[5]', '7',
  ]  # fmt: skip


def test_rows_of_a_split_are_read(taught, capsys):
  lines = taught.table.read_text().splitlines()
  table = taught.table.with_name('split.csv')
  splits = ['split', *('test' if i % 2 else 'train' for i in range(len(lines) - 1))]
  joined = [f'{line},{split}' for line, split in zip(lines, splits, strict=True)]
  table.write_text('\n'.join(joined) + '\n')
  assert found(capsys, taught.workdir, '--data', table, '--split', 'test')['examples'] == 10
  text = failing(capsys, taught.workdir, '--data', taught.arrays, '--split', 'test')
  assert '--split is for tables of images' in text


def test_texts_are_evaluated(reader, tmp_path, capsys):
  tokenizer = '--tokenizer', reader / 'tokenizer.json'
  outcome = found(capsys, reader / 'run', '--data', reader / 'texts.csv', *tokenizer)
  results = json.loads((reader / 'run' / 'results.json').read_text())
  assert outcome['accuracy'] == pytest.approx(np.mean(results['accuracy_matrix'][-1]))
  text = failing(capsys, reader / 'run', '--data', tmp_path, *tokenizer)
  assert 'expected a file that ends in .csv, .jsonl or .npz' in text


def test_in_code_any_source_is_evaluated(taught):
  learner = load_run(taught.workdir)
  some = data.first_per_class(taught.test, 2)
  assert evaluated(learner, some)['examples'] == 8


@pytest.mark.parametrize(
  ('path', 'message'),
  [('absent', 'no file or folder'), ('a.txt', 'expected a folder per class, or a file that ends')],
)
def test_what_is_no_test_set_is_refused(path, message, taught, tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('a')
  assert message in failing(capsys, taught.workdir, '--data', tmp_path / path)
