"""How records are printed: one line with the facts that count."""

import dataclasses

import jax
import numpy as np
import pytest

from pecft_jax import data
from pecft_jax.backbones import random_weights
from pecft_jax.continual import er, ewc, finetune
from pecft_jax.peft import lora
from pecft_jax.train import Experiment, Training, adam
from pecft_jax.train.state import init_state
from pecft_jax.typing import Adapted, Batch, Env

MOST = 400  # Characters.


@pytest.fixture(scope='module')
def records():
  """The records of an experiment with 1,000 classes, by the name of their type."""
  images = np.zeros((2000, 8, 8, 1), np.uint8)
  source = data.arrays('thousand', images, np.arange(2000) % 1000)
  scenario = data.class_incremental(source, source, tasks=10)
  scenario = scenario._replace(probes=(data.Probe('before', scenario.tasks[0].test),))
  model = random_weights('vit_glyphs16', image_size=8, depth=2, width=8, heads=2)
  inner = finetune(model.backbone, scenario.capacity, peft=lora('attn/(q|v)$', rank=2))
  method = er(ewc(inner))
  training = Training(adam(1e-3), 1, augment=data.random_crop(1))
  key = jax.random.key(0)
  state = jax.eval_shape(lambda: init_state(method, training.recipe, key, model.params))
  x = np.zeros((128, 8, 8, 1), np.uint8)
  found = [
    Experiment(model, scenario, method, training, references={'finetune': method}),
    model, model.backbone, scenario, scenario.tasks[0], scenario.tasks[0].train,
    scenario.probes[0], source, method, training, training.recipe, state, state.task,
    Env(model.params, state.task), Batch(x, x, x, x), method.transforms['delta'],
    Adapted(method.transforms['delta'], state.params['delta'], None), scenario.capacity,
    scenario.capacity.problem, model.backbone.inputs, training.augment,
  ]  # fmt: skip
  return {type(each).__name__: each for each in found}


def test_each_record_prints_one_short_line(records):
  for name, record in records.items():
    text = repr(record)
    assert text.startswith(f'{name}('), text
    assert len(text) <= MOST and '\n' not in text, text


def test_what_is_printed_names_the_facts(records):
  assert 'er(ewc(finetune)) on vit_glyphs16' in repr(records['ContinualMethod'])
  assert 'tasks=10, classes=1000' in repr(records['Experiment'])
  assert repr(records['Source']) == "Source('thousand', 2000 examples, classes=1000)"
  assert repr(records['Split']) == 'Split(200 of 2000 examples)'
  assert 'rank=2' in repr(records['PeftTransform'])
  assert 'numbers in' in repr(records['TrainState'])


def test_a_state_whose_arrays_are_deleted_is_printed():
  leaf = jax.numpy.zeros(3)
  leaf.delete()
  assert repr(Env({'a': leaf}, None)) == 'Env(frozen=float32[3], step=0)'  # pyright: ignore


def test_an_experiment_is_still_a_record_with_fields(records):
  names = [field.name for field in dataclasses.fields(records['Experiment'])]
  assert names[:4] == ['model', 'scenario', 'method', 'training']
