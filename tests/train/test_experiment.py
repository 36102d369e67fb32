"""Parts that do not fit are found before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import TRAINING, tiny_experiment, tiny_method

from pecft_jax.backbones import random_weights
from pecft_jax.data import random_crop
from pecft_jax.devices.digest import tree_sha256
from pecft_jax.train.experiment import check_experiment, describe, identified


def test_a_good_experiment():
  check_experiment(tiny_experiment(references={'finetune': tiny_method('finetune')}))


@pytest.mark.parametrize('field', ['epochs', 'batch_size', 'eval_batch_size', 'log_every'])
def test_numbers_must_be_positive(field):
  with pytest.raises(ValueError, match=f'{field} must be at least 1, got 0'):
    check_experiment(tiny_experiment(training=TRAINING._replace(**{field: 0})))


@pytest.mark.parametrize(('part', 'which'), [('train', ''), ('test', 'the test set of ')])
@pytest.mark.parametrize('last', [False, True])
def test_images_must_fit_the_backbone_in_every_split(part, which, last):
  experiment = tiny_experiment()
  tasks = list(experiment.scenario.tasks)

  def with_inputs(inputs):
    changed = getattr(tasks[-last], part)._replace(inputs=inputs)
    all_tasks = tuple(
      task._replace(**{part: changed}) if task is tasks[-last] else task for task in tasks
    )
    return experiment.replace(scenario=experiment.scenario._replace(tasks=all_tasks))

  name = f"{which}task 'task_{int(last)}'"
  with pytest.raises(ValueError, match=rf'images \[4, 4, 1\], {name} has \[6, 6, 1\]'):
    check_experiment(with_inputs(np.zeros((99, 6, 6, 1), np.uint8)))
  with pytest.raises(ValueError, match=rf'images of dtype uint8, {name} has float32'):
    check_experiment(with_inputs(np.zeros((99, 4, 4, 1), np.float32)))


def test_methods_must_hold_the_sequence():
  experiment = tiny_experiment(tasks=3).replace(method=tiny_method('finetune'))
  with pytest.raises(ValueError, match=r'method finetune holds 2 tasks .* has 3 and 6'):
    check_experiment(experiment)
  references = {'upper': tiny_method('joint', 3)}
  with pytest.raises(ValueError, match='upper joint holds 3 tasks and 6 classes'):
    check_experiment(tiny_experiment(references=references))


def test_queries_are_cached_only_where_that_is_exact():
  cached = TRAINING._replace(cache_queries=True)
  check_experiment(tiny_experiment('l2p', training=cached))
  with pytest.raises(ValueError, match='finetune reads no frozen query'):
    check_experiment(tiny_experiment(training=cached))
  with pytest.raises(ValueError, match='train without augmentation'):
    check_experiment(tiny_experiment('l2p', training=cached._replace(augment=random_crop(1))))


def test_identity():
  found = describe(tiny_experiment(identity={'backbone_sha256': 'f00'}))
  assert found['backbone'] == 'tiny'
  assert found['backbone_sha256'] == 'f00'
  assert found['class_order'] == [0, 1, 2, 3]
  assert found['value_range'] == '(x / 255 - [0.5]) / [0.25]'


def test_weights_put_in_the_place_of_others_have_a_digest_of_their_own():
  model = random_weights('vit_glyphs16', image_size=8, depth=1, width=8, heads=2)
  digest = lambda each: identified(tiny_experiment(model=each)).model.identity['backbone_sha256']
  assert digest(model) == digest(model._replace(head=None)) == 'random, seed 0'
  others = model._replace(params={**model.params, 'pos': model.params['pos'] + 1})
  assert digest(others) == tree_sha256(others.params)
  copied = model._replace(params=jax.tree.map(jnp.copy, model.params))
  assert digest(copied) == tree_sha256(model.params)
  model.params['pos'] = model.params['pos'] + 1  # In place.
  assert digest(model) == tree_sha256(model.params)
  assert jax.eval_shape(lambda: random_weights('vit_glyphs16', depth=1).params)['pos'].shape[0] == 1
