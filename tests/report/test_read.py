"""Reading of work directories."""

import json

import numpy as np
import pytest

from pecft_jax.report import read_run


def test_finished_run(work, bounds):
  run = read_run(work(beside=bounds, wrappers=['ewc', 'derpp']))
  assert (run.finished, run.total, run.done) == (3, 3, True)
  assert run.title == 'ranpac + ewc + derpp'
  assert run.matrix[2, 0] == pytest.approx(0.8)
  assert np.isnan(run.matrix[0, 1])
  assert set(run.references) == {'finetune', 'joint'}
  assert run.config['peft'] == {'rank': 8}
  assert len(run.log) == 15
  assert run.problems == ()


def test_wrappers_are_named_once(work):
  assert read_run(work(method='ewc(finetune)', wrappers=['ewc'])).title == 'ewc(finetune)'


def test_tasks_that_are_just_numbered_count_from_one(work):
  assert read_run(work('a', tasks=2)).tasks == ('task 1', 'task 2')
  path = work('b')
  text = (path / 'results.json').read_text()
  for there, here in enumerate(('red', 'green', 'blue'), 1):
    text = text.replace(f'task {there}', here)
  (path / 'results.json').write_text(text)
  assert read_run(path).tasks == ('red', 'green', 'blue')
  for there, here in enumerate(('red', 'green', 'blue')):
    text = text.replace(here, f'task_{there}')
  (path / 'results.json').write_text(text)
  assert read_run(path).tasks == ('task 1', 'task 2', 'task 3')


def test_metrics_are_completed_from_the_matrix_and_kept_where_recorded(work):
  recorded = {'forgetting': 0.5, 'fwt': None, 'bwt': float('nan')}
  metrics = read_run(work(metrics=recorded)).metrics
  assert metrics['forgetting'] == 0.5
  assert metrics['average_accuracy'] == pytest.approx(0.85)
  assert metrics['bwt'] == pytest.approx(-0.075)
  assert 'fwt' not in metrics


def test_only_the_matrix_is_needed(tmp_path):
  (tmp_path / 'results.json').write_text('{"accuracy_matrix": [[0.5]]}')
  run = read_run(tmp_path)
  assert run.title == tmp_path.name
  assert run.tasks == ('task 1',)
  assert run.done


def test_running_run_has_its_finished_rows(work):
  run = read_run(work(finished=2, tasks=4))
  assert (run.finished, run.total, run.done) == (2, 4, False)


@pytest.mark.parametrize('empty', [[], [[None] * 3] * 3])
def test_run_without_a_finished_task(work, empty):
  run = read_run(work(accuracy_matrix=empty, status='running'))
  assert (run.finished, run.total, run.done) == (0, 3, False)


@pytest.mark.parametrize('status', ['running', 'done'])
def test_done_needs_both_the_status_and_all_tasks(work, status):
  assert not read_run(work(finished=2 if status == 'done' else 3, status=status)).done


def test_scenario_may_be_a_record(work):
  assert read_run(work(scenario={'kind': 'domain'})).scenario == 'domain'


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'axis': ['task', 'time']}, r"expected axis \['time', 'task'\], got \['task', 'time'\]"),
    ({'accuracy_matrix': ...}, "expected a field 'accuracy_matrix', got .*'axis'"),
    ({'accuracy_matrix': [[90.0]]}, r'accuracy in \[0, 1\], got 90.0'),
    ({'accuracy_matrix': [[0.9, 0.8], [None, 0.7]]}, r'is the matrix \[task, time\]'),
    ({'test_sizes': [100]}, 'sizes of shape'),
  ],
)
def test_unusable_results_say_what_is_wrong(work, fields, message):
  with pytest.raises(ValueError, match=rf'results\.json: .*{message}'):
    read_run(work(**fields))


def test_missing_results_say_what_was_expected(tmp_path):
  with pytest.raises(ValueError, match=r'does not exist; expected a work directory'):
    read_run(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'), [('{"a": ', 'line 1, is damaged'), ('[]', r'expected an object, got \[\]')]
)
def test_broken_results_are_refused(tmp_path, text, message):
  (tmp_path / 'results.json').write_text(text)
  with pytest.raises(ValueError, match=message):
    read_run(tmp_path)


def test_broken_reference_is_left_out_and_named(work, bounds):
  path = work(beside=bounds)
  (path / 'references' / 'joint' / 'results.json').write_text('{')
  run = read_run(path)
  assert set(run.references) == {'finetune'}
  assert 'Left out: reference joint' in run.problems[0]


def test_line_cut_short_at_the_end_of_the_log_is_dropped(work):
  path = work()
  with (path / 'metrics.jsonl').open('a') as log:
    log.write('{"kind": "tr')
  run = read_run(path)
  assert (len(run.log), run.problems) == (15, ())


def test_broken_lines_within_the_log_are_counted(work):
  path = work()
  with (path / 'metrics.jsonl').open('a') as log:
    log.write('{"kind": "tr' + json.dumps({'kind': 'eval'}) + '\n' + '{"kind": "eval"}\n')
  run = read_run(path)
  assert len(run.log) == 16
  (problem,) = run.problems
  assert problem.startswith(f'Left out: {path}/metrics.jsonl, line 16, is damaged: ')
