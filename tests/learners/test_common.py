"""What any method learned predicts alike from its run, as a bundle, and as a program."""

import json

import jax
import numpy as np
import pytest
from safetensors.flax import load_file
from tinies import ALL_WRAPPERS, METHOD_NAMES

from pecft_jax.learners import load_bundle, load_run, save_bundle, save_stablehlo


def right(learner, split):
  """The share of a split that is answered right."""
  answers = learner.predict(split.inputs[split.rows], batch_size=5)
  return float((answers.argmax(-1) == split.labels).mean())


@pytest.mark.parametrize('name', (*METHOD_NAMES, ALL_WRAPPERS))
def test_every_method_is_used_after_its_run(name, run_of, tmp_path):
  experiment, directory = run_of(name)
  learner = load_run(directory, model=experiment.model)
  inputs = experiment.scenario.tasks[0].test.inputs[:3]
  answers = learner.predict(inputs, batch_size=5)

  save_bundle(learner, tmp_path / 'bundle', weights=False)
  again = load_bundle(tmp_path / 'bundle', model=experiment.model)
  np.testing.assert_array_equal(again.predict(inputs, batch_size=5), answers)
  assert (again.classes, again.facts) == (learner.classes, learner.facts)
  save_bundle(again, tmp_path / 'copy', weights=False)
  states = [(tmp_path / place / 'state.safetensors').read_bytes() for place in ('bundle', 'copy')]
  assert states[0] == states[1]

  save_stablehlo(learner, tmp_path / 'program')
  program = jax.export.deserialize((tmp_path / 'program' / 'predict.stablehlo').read_bytes())
  arrays = load_file(tmp_path / 'program' / 'arrays.safetensors')
  # It is compiled apart, and may add up in another order.
  np.testing.assert_allclose(program.call(arrays, inputs), answers, rtol=1e-5, atol=1e-5)

  if not experiment.method.capacity.problem.classes:
    return
  matrix = json.loads((directory / 'results.json').read_text())['accuracy_matrix']
  for tasks in (1, 2):
    learner = load_run(directory, tasks, model=experiment.model)
    assert learner.tasks == tasks
    assert learner.classes == experiment.scenario.class_names[: 2 * tasks]
    shares = [right(learner, task.test) for task in experiment.scenario.tasks[:tasks]]
    np.testing.assert_allclose(shares, matrix[tasks - 1][:tasks], rtol=1e-6)
  found = learner.features(inputs, batch_size=5)
  assert found.shape == (3, found.shape[1])
  assert np.isfinite(found).all()
  chances = learner.probabilities(inputs, batch_size=5)
  np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-6)


def test_a_program_takes_any_number_of_examples(run_of, tmp_path):
  experiment, directory = run_of('ease')
  learner = load_run(directory, model=experiment.model)
  save_stablehlo(learner, tmp_path / 'program')
  program = jax.export.deserialize((tmp_path / 'program' / 'predict.stablehlo').read_bytes())
  arrays = load_file(tmp_path / 'program' / 'arrays.safetensors')
  images = experiment.scenario.tasks[0].test.inputs
  for size in (1, 4):
    expected = learner.predict(images[:size])
    np.testing.assert_allclose(program.call(arrays, images[:size]), expected, rtol=1e-5, atol=1e-5)
