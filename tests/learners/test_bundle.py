"""A bundle predicts what the run does, says what is wrong with it, and holds no code."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import silent, tiny_experiment

from pecft_jax import backbones, continual
from pecft_jax.learners import is_bundle, load_bundle, load_run, save_bundle
from pecft_jax.train import run


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A bundle with weights, and its learner."""
  model = backbones.random_weights('vit_glyphs16', image_size=4, depth=1, width=8, heads=2)
  experiment = tiny_experiment()
  method = continual.finetune(model.backbone, experiment.scenario.capacity)
  root = tmp_path_factory.mktemp('whole')
  run(experiment.replace(model=model, method=method), root / 'run', silent())
  learner = load_run(root / 'run')
  save_bundle(learner, root / 'bundle')
  return root / 'bundle', learner


def test_with_weights_nothing_else_is_needed(whole):
  directory, learner = whole
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
  np.testing.assert_array_equal(load_bundle(directory).predict(images), learner.predict(images))
  assert is_bundle(directory)
  assert not is_bundle(directory.parent / 'run')
  assert sorted(path.suffix for path in directory.iterdir()) == [
    '.json', '.safetensors', '.safetensors',
  ]  # fmt: skip


def test_weights_in_half_precision_stay_so(whole, tmp_path):
  import jax
  import jax.numpy as jnp

  learner = whole[1]
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), learner.model.params)
  model = learner.model._replace(params=half)
  other = type(learner)(
    model=model, method=learner.method, state=learner.state, class_names=learner.class_names,
    tasks=2,
  )  # fmt: skip
  save_bundle(other, tmp_path / 'half')
  found = load_bundle(tmp_path / 'half').model.params
  assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {'bfloat16'}


def _damaged(whole, tmp_path, change):
  directory = tmp_path / 'copy'
  shutil.copytree(whole[0], directory)
  change(directory)
  return directory


def _flip(name):
  def change(directory):
    content = bytearray((directory / name).read_bytes())
    content[-3] ^= 1
    (directory / name).write_bytes(content)

  return change


def _said(**entries):
  def change(directory):
    path = directory / 'bundle.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

  return change


DAMAGES = {
  'state': (_flip('state.safetensors'), r'state\.safetensors is damaged'),
  'weights': (_flip('weights.safetensors'), r'weights\.safetensors is damaged'),
  'gone': (lambda at: (at / 'state.safetensors').unlink(), 'lacks state.safetensors'),
  'format': (_said(format='other'), "its format is not 'pecft_jax bundle'"),
  'newer': (_said(version=2), 'has version 2, this library reads 1'),
  'names': (_said(class_names=3), 'expected list for class_names, got 3'),
  'method': (_said(method={'name': 'mine'}), 'mine is not made by a factory of the library'),
  'json': (lambda at: (at / 'bundle.json').write_text('{'), 'is not the description of a bundle'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_named(damage, whole, tmp_path):
  change, message = DAMAGES[damage]
  with pytest.raises(ValueError, match=message):
    load_bundle(_damaged(whole, tmp_path, change))


def test_a_directory_that_holds_something_is_left_alone(whole):
  with pytest.raises(ValueError, match='is there already'):
    save_bundle(whole[1], whole[0])


def test_without_weights_other_weights_are_refused(whole, tmp_path):
  save_bundle(whole[1], tmp_path / 'small', weights=False)
  other = backbones.random_weights(
    'vit_glyphs16', image_size=4, depth=1, width=8, heads=2, seed=1, name='vit_glyphs16-random'
  )
  with pytest.raises(ValueError, match='is of other weights'):
    load_bundle(tmp_path / 'small', model=other)
