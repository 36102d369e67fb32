"""Where a run stands between its bounds."""

import pytest

from pecft_jax.report import read_run
from pecft_jax.report.bounds import beside, clauses, headline, standing

FINAL = {'accuracy_matrix': [[0.9, None], [0.9, 0.9]], 'tasks': 2, 'test_sizes': [1, 1]}


def bound(final):
  return {**FINAL, 'accuracy_matrix': [[final, None], [final, final]]}


def at(work, lower=None, upper=None, **fields):
  references = {'finetune': lower, 'joint': upper}
  found = {name: bound(value) for name, value in references.items() if value is not None}
  return standing(read_run(work(beside=found, **FINAL | fields)))


def test_headline_says_how_far_from_both_bounds(work):
  assert headline(at(work, 0.5, 0.95)).replace('\u202f', ' ') == (
    'ranpac: 90.0 % average accuracy; +40.0 points over sequential fine-tuning, 5.0 points below '
    'joint training; closes 89 % of the gap'
  )


def test_headline_beyond_the_bounds(work):
  text = headline(at(work, 0.92, 0.85))
  assert '2.0 points below sequential fine-tuning, 5.0 points above joint training' in text
  assert 'gap' not in text


def test_headline_with_one_bound(work):
  assert headline(at(work, lower=0.5)).endswith('; +40.0 points over sequential fine-tuning')


def test_headline_without_bounds(work):
  result = at(work)
  assert headline(result).endswith('average accuracy')
  assert result.notes == ('No run of sequential fine-tuning or joint training beside this one',)


def test_recorded_metrics_stand_in_for_missing_directories(work):
  recorded = {'finetune': {'average_accuracy': 0.5}, 'joint': {'average_accuracy': 1.0}}
  assert at(work, references=recorded).closed == pytest.approx(0.8)


def test_unfinished_run_is_compared_after_its_own_tasks(work, bounds):
  run = read_run(work(finished=2, tasks=4, beside=bounds))
  result = standing(run)
  assert result.accuracy == pytest.approx(0.875)
  assert result.lower == pytest.approx(0.75)  # After 2 tasks, not 4.
  assert 'after 2 of 4 tasks' in headline(result)
  assert beside(run)['sequential fine-tuning']['average_accuracy'] == pytest.approx(0.75)


def test_reference_that_has_not_come_so_far_is_left_out(work, bounds):
  bounds['joint']['finished'] = 1
  run = read_run(work(beside=bounds))
  result = standing(run)
  assert result.upper is None
  assert result.notes == (
    'Left out of the comparison: joint training, which has finished 1 of 3 tasks',
  )
  assert 'joint training (after 1 of 3 tasks)' in beside(run)


def test_reference_of_another_identity_is_no_bound(work, bounds):
  bounds['joint']['identity'] = {'benchmark': 'Split CIFAR-100', 'backbone_sha256': 'other'}
  # Nor is what the run recorded of it.
  run = read_run(work(beside=bounds, references={'joint': {'average_accuracy': 0.99}}))
  assert standing(run).upper is None
  assert 'joint training' not in beside(run)
  assert standing(run).notes == ('Left out: reference joint, which differs in backbone_sha256',)


def test_reference_of_another_number_of_tasks_is_no_bound(work, bounds):
  bounds['joint']['tasks'] = 4
  run = read_run(work(beside=bounds))
  assert set(run.references) == {'finetune'}
  assert 'differs in the number of tasks' in run.problems[0]


def test_nothing_finished(work, bounds):
  result = standing(read_run(work(finished=0, beside=bounds)))
  assert headline(result) == 'ranpac: no task finished yet'


def test_the_better_masked_bound_has_a_clause(work):
  ends = {'finetune': bound(0.5), 'joint': bound(0.95)}
  masked = {'masked_finetune': bound(0.7), 'masked_probe': bound(0.8)}
  found = standing(read_run(work(beside=ends | masked, **FINAL)))
  assert found.masked == ('masked linear probe', pytest.approx(0.8))
  assert clauses(found)[-1] == '10.0 points above masked linear probe'
  # They change nothing about the gap, and nothing says that they are missing.
  plain = standing(read_run(work('plain', beside=ends, **FINAL)))
  assert plain.masked is None and plain.closed == found.closed and not plain.notes
