"""What a run learned is read from its work directory, and predicts what was evaluated."""

import json

import numpy as np
import pytest
from tiny_runs import TRAINING, silent, tiny_experiment, tiny_method, tiny_scenario, tiny_world

from pecft_jax import backbones, continual
from pecft_jax.learners import load_run
from pecft_jax.train import Experiment, run, run_seeds
from pecft_jax.typing import Pretrained


def test_a_language_model_answers_tokens(run_of):
  experiment, directory = run_of('language_model')
  learner = load_run(directory, model=experiment.model)
  texts = experiment.scenario.tasks[0].test.inputs[:3]
  assert learner.predict(texts).shape == (3, 5, 6)
  with pytest.raises(ValueError, match='answers next_tokens, which has no classes'):
    learner.probabilities(texts)


@pytest.fixture(scope='module')
def glyphs(tmp_path_factory):
  """A run on a backbone of the library, of which settings and the card say all."""
  model = backbones.random_weights('vit_glyphs16', image_size=4, depth=1, width=8, heads=2)
  scenario = tiny_scenario()
  method = continual.simplecil(model.backbone, scenario.capacity)
  experiment = Experiment(model, scenario, method, TRAINING)
  directory = tmp_path_factory.mktemp('glyphs') / 'run'
  run(experiment, directory, silent())
  return experiment, directory


def test_nothing_but_the_directory_is_needed(glyphs):
  experiment, directory = glyphs
  learner = load_run(directory)
  assert repr(learner) == 'Learner(simplecil on vit_glyphs16-random, tasks=2, classes=4 of 4)'
  given = load_run(directory, model=experiment.model, method=experiment.method)
  images = experiment.scenario.tasks[0].test.inputs
  np.testing.assert_array_equal(learner.predict(images), given.predict(images))


def test_batches_of_any_size_answer_alike(glyphs):
  learner, images = load_run(glyphs[1]), tiny_scenario().tasks[0].test.inputs[:7]
  whole = learner.predict(images, batch_size=7)
  for size in (1, 3, 64):
    np.testing.assert_allclose(learner.predict(images, batch_size=size), whole, atol=1e-6)


def test_batches_come_one_by_one(glyphs):
  learner, images = load_run(glyphs[1]), tiny_scenario().tasks[0].test.inputs[:7]
  found = list(learner.batches(images, batch_size=3))
  assert [len(each) for each in found] == [3, 3, 1]
  np.testing.assert_array_equal(np.concatenate(found), learner.predict(images, batch_size=3))


def test_weights_of_a_file_are_found_again(tmp_path):
  model = backbones.random_weights('vit_glyphs16')
  backbones.save_timm(tmp_path / 'a.safetensors', model.backbone, model.params)
  card = json.loads(backbones.find_card('vit_glyphs16').path.read_text())
  card = {**card, 'name': 'mine', 'file': None, 'sha256': None}
  (tmp_path / 'mine.json').write_text(json.dumps(card))
  model = backbones.pretrained(tmp_path / 'mine.json', tmp_path / 'a.safetensors')
  source = model.identity.source
  assert source == {'file': str((tmp_path / 'a.safetensors').resolve())}


def test_other_weights_are_refused(glyphs):
  other = backbones.random_weights(
    'vit_glyphs16', image_size=4, depth=1, width=8, heads=2, seed=1, name='vit_glyphs16-random'
  )
  with pytest.raises(ValueError, match=r'is of other weights: .* there random, seed 0, of'):
    load_run(glyphs[1], model=other)


def test_another_method_is_refused_by_its_settings(run_of):
  experiment, directory = run_of('finetune')
  other = tiny_method('masked_finetune')
  with pytest.raises(ValueError, match='name: there "finetune", here "masked_finetune"'):
    load_run(directory, model=experiment.model, method=other)


def test_what_was_not_recorded_is_asked_for(run_of):
  directory = run_of('finetune')[1]
  with pytest.raises(ValueError, match=r'tiny is not made by a factory .*model=\.\.\., method='):
    load_run(directory)


def test_weights_that_nobody_can_find_are_asked_for(tmp_path):
  model, scenario, capacity = tiny_world('adapters')
  method = continual.simplecil(model.backbone, capacity)
  model = Pretrained(model.backbone, model.params)
  run(Experiment(model, scenario, method, TRAINING), tmp_path, silent())
  with pytest.raises(ValueError, match='does not say where the weights of vit are'):
    load_run(tmp_path)


def test_a_task_without_a_checkpoint_is_refused(glyphs):
  with pytest.raises(ValueError, match=r'no checkpoint after task 7; .* after \[1, 2\]'):
    load_run(glyphs[1], 7)


def test_seeds_side_by_side_are_told_apart_by_number(tmp_path):
  experiment = tiny_experiment('finetune')
  run_seeds(experiment, [3, 5], tmp_path, silent())
  images = experiment.scenario.tasks[0].test.inputs
  found = [load_run(tmp_path, seed=seed, model=experiment.model).predict(images) for seed in (3, 5)]
  assert np.abs(found[0] - found[1])[:, :4].max() > 1e-6
  with pytest.raises(ValueError, match='name one of them'):
    load_run(tmp_path, model=experiment.model)
  by_directory = load_run(tmp_path / 'seed_5', model=experiment.model)
  np.testing.assert_array_equal(by_directory.predict(images), found[1])
  with pytest.raises(ValueError, match='has seed 5 alone, got 3'):
    load_run(tmp_path / 'seed_5', seed=3, model=experiment.model)


def test_a_single_seed_that_could_have_had_others_beside_it_is_found(tmp_path):
  experiment = tiny_experiment('finetune')
  run_seeds(experiment, [3], tmp_path, silent())
  images = experiment.scenario.tasks[0].test.inputs
  both = [(tmp_path, 3), (tmp_path / 'seed_3', None)]
  found = [load_run(at, seed=s, model=experiment.model).predict(images) for at, s in both]
  np.testing.assert_array_equal(*found)


def test_inputs_of_another_shape_or_none_are_refused(glyphs):
  learner = load_run(glyphs[1])
  with pytest.raises(ValueError, match='expects images'):
    learner.predict(np.zeros((2, 5, 5, 1), np.uint8))
  with pytest.raises(ValueError, match='at least one example, got none'):
    learner.predict(np.zeros((0, 4, 4, 1), np.uint8))
  with pytest.raises(ValueError, match='expected 2 tasks, one per example'):
    learner.predict(np.zeros((2, 4, 4, 1), np.uint8), tasks=[0])
