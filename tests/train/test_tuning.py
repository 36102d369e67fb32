import json

import numpy as np
import pytest
from tiny_runs import TRAINING, silent, tiny_experiment

from pecft_jax import data
from pecft_jax.measures import ACCURACY, Measure
from pecft_jax.train import combinations, run, sgd, tuned
from pecft_jax.train.tuning import Trial, _at_edge, _best


def _with_rate(choice):
  return tiny_experiment(training=TRAINING._replace(recipe=sgd(choice['rate'])))


def test_the_best_trial_wins_and_is_what_a_run_on_held_out_data_gives(tmp_path):
  choices = combinations(rate=(1e-6, 0.5))
  found = tuned(_with_rate, choices, tmp_path, silent(), tasks=2, share=0.3)
  scores = [trial.score for trial in found.trials]
  assert found.choice == choices[int(np.argmax(scores))]
  for trial in found.trials:
    experiment = _with_rate(trial.choice)
    again = run(
      experiment.replace(scenario=data.validation(experiment.scenario, 2, 0.3)), None, silent()
    )
    assert again['metrics']['average_accuracy'] == trial.score
    assert again['test_sizes'] == trial.results['test_sizes']
  written = json.loads((tmp_path / 'tuned.json').read_text())
  assert written['choice'] == found.choice
  assert [trial['score'] for trial in written['trials']] == scores
  assert written['protocol'] == {
    'tasks': 2, 'held_out': 0.3, 'trials': 2, 'measure': 'accuracy'
  }  # fmt: skip


def test_trials_that_have_ended_are_read_and_not_run_again(tmp_path, monkeypatch):
  choices = combinations(rate=(0.1,))
  first = tuned(_with_rate, choices, tmp_path, silent())
  monkeypatch.setattr('pecft_jax.train.job._run_to_end', None)
  assert tuned(_with_rate, choices, tmp_path, silent()).trials[0].score == first.trials[0].score
  with pytest.raises(ValueError, match='recipe'):  # Another choice has another configuration.
    tuned(_with_rate, combinations(rate=(0.2,)), tmp_path, silent())


def test_neither_test_sets_nor_later_tasks_are_read():
  experiment = tiny_experiment(tasks=2)
  poisoned = lambda split: split._replace(rows=split.rows + 10**9)  # Reading them would raise.
  first, second = experiment.scenario.tasks
  scenario = experiment.scenario._replace(
    tasks=(
      first._replace(test=poisoned(first.test)),
      second._replace(train=poisoned(second.train), test=poisoned(second.test)),
    )
  )
  found = tuned(
    lambda choice: experiment.replace(scenario=scenario), [{}], options=silent(), tasks=1
  )
  assert found.trials[0].score is not None


def test_a_trial_that_diverges_has_no_score_and_all_of_them_are_an_error():
  found = tuned(_with_rate, combinations(rate=(1e30, 0.1)), options=silent())
  assert found.trials[0] == ({'rate': 1e30}, None, None)
  assert found.choice == {'rate': 0.1}
  with pytest.raises(ValueError, match='diverged with each of 1 choices'):
    tuned(_with_rate, combinations(rate=(1e30,)), options=silent())


def test_the_lowest_wins_where_lower_is_better_and_the_first_of_equals():
  trials = [Trial({'a': i}, score, {}) for i, score in enumerate((0.5, 0.25, 0.5, 0.25))]
  assert _best(trials, ACCURACY).choice == {'a': 0}
  error = Measure('squared error', 0.0, float('inf'), higher_is_better=False)
  assert _best(trials, error).choice == {'a': 1}


def test_edges_are_named():
  choices = combinations(rate=(1, 2, 3), strength=(1, 2))
  assert _at_edge({'rate': 3, 'strength': 2}, choices) == ('rate',)
  assert _at_edge({'rate': 2, 'strength': 2}, choices) == ()


@pytest.mark.parametrize(
  ('choices', 'message'),
  [([], 'at least one choice'), ([{'rate': 1}, {'rate': 1}], 'choices that differ')],
)
def test_no_choices_and_equal_choices_are_refused(choices, message):
  with pytest.raises(ValueError, match=message):
    tuned(_with_rate, choices)
