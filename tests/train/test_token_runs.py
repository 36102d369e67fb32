"""Runs over sequences of token ids: classes of texts that come two at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinies import METHOD_NAMES, WRAPPED_NAMES, needs_of, tiny, without
from tiny_runs import silent

from pecft_jax import data
from pecft_jax.backbones import decoder
from pecft_jax.continual import derpp, er, finetune, olora, ranpac
from pecft_jax.data import random_crop
from pecft_jax.peft import lora
from pecft_jax.problems import classification, next_tokens
from pecft_jax.train import Experiment, Training, adam, compile_steps, one_device, run
from pecft_jax.train.experiment import check_experiment, describe
from pecft_jax.typing import Batch, Capacity, Pretrained

TASKS, CLASSES, LENGTH, PAD = 3, 6, 9, -1


@functools.cache
def scenario():
  """Each class has three words of its own; a third of a text is any words at all."""

  def source(each, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(CLASSES).repeat(each)
    own = 3 * labels[:, None] + rng.integers(0, 3, (len(labels), LENGTH))
    anything = rng.integers(0, 3 * CLASSES, own.shape)
    texts = np.where(rng.random(own.shape) < 1 / 3, anything, own).astype(np.int32)
    texts[np.arange(LENGTH) >= rng.integers(5, LENGTH + 1, len(labels))[:, None]] = PAD
    return data.arrays('words', texts, labels)

  return data.class_incremental(source(12, 0), source(8, 1), tasks=TASKS)


def reader_of(depth):
  return decoder(
    vocabulary=3 * CLASSES, width=16, depth=depth, heads=4, kv_heads=2, hidden=24, length=LENGTH,
    pad=PAD,
  )  # fmt: skip


@functools.cache
def reader():
  return reader_of(2)


@functools.cache
def one_block():
  return reader_of(1)


@functools.cache
def frozen():
  return jax.jit(reader().init)(jax.random.key(0))


def experiment(method, **training):
  settings = Training(adam(3e-2), epochs=6, batch_size=8, eval_batch_size=16, log_every=99)
  model = Pretrained(reader(), frozen())
  return Experiment(model, scenario(), method, settings._replace(**training))


CAPACITY = Capacity(TASKS, CLASSES)
METHODS = {
  'finetune': finetune,
  'olora': olora,
  'ranpac': functools.partial(ranpac, projection=200),
}


@pytest.mark.parametrize('name', METHODS)
def test_texts_are_learned_task_by_task(name, tmp_path):
  found = run(experiment(METHODS[name](reader(), CAPACITY, peft=lora(rank=2))), tmp_path, silent())
  assert found['status'] == 'done'
  assert set(found['compilations'].values()) == {1}
  assert found['accuracy_matrix'][0][0] > 0.75  # Between two classes.
  if name == 'ranpac':  # The others forget, which leaves little above chance, 1 / 6.
    assert found['metrics']['average_accuracy'] > 0.4


NAMES = (*(name for name in METHOD_NAMES if ':' not in name), *WRAPPED_NAMES)


@pytest.mark.parametrize('name', without('class token', names=NAMES))
def test_every_pass_of_every_method_takes_texts(name):
  of_tokens = 'texts' in needs_of(name)
  problem = next_tokens(LENGTH) if of_tokens else classification
  short = one_block()
  frozen = jax.eval_shape(short.init, jax.random.key(0))
  method = tiny(name, short, Capacity(TASKS, CLASSES, problem))
  steps = compile_steps(method, adam(1e-3), one_device(), frozen)
  state = jax.eval_shape(steps.init, jax.random.key(0), frozen)
  rows = np.arange(8, dtype=np.int32)
  y = np.zeros((8, LENGTH), np.int32) if of_tokens else rows % CLASSES
  batch = Batch(np.zeros((8, LENGTH), np.int32), y, rows < 7, rows)
  passes = [steps.prepare, steps.consolidate, lambda *args: steps.train(*args)[0]]
  for each in filter(None, passes):
    after = jax.eval_shape(each, state, frozen, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize('name', sorted({*METHOD_NAMES} - {*without('class token')}))
def test_what_needs_a_class_token_is_refused(name):
  with pytest.raises(ValueError, match='class token'):
    tiny(name, reader(), CAPACITY)


def test_replay_keeps_token_ids():
  method = derpp(er(finetune(reader(), CAPACITY, peft=lora(rank=2)), size=5), size=7)
  _, memory = jax.eval_shape(method.init, jax.random.key(0), frozen())
  kept = [leaf for leaf in jax.tree.leaves(memory) if leaf.shape[1:] == (LENGTH,)]
  assert sorted(leaf.shape[0] for leaf in kept) == [5, 7]
  assert {leaf.dtype for leaf in kept} == {np.dtype(np.int32)}


def test_what_does_not_fit_a_text_is_refused():
  method = finetune(reader(), CAPACITY, peft=lora(rank=2))
  good = experiment(method)
  check_experiment(good)
  with pytest.raises(ValueError, match='only images can be augmented, decoder reads token ids'):
    check_experiment(experiment(method, augment=random_crop(1)))

  def with_inputs(change):
    tasks = tuple(
      task._replace(train=task.train._replace(inputs=change(task.train.inputs)))
      for task in scenario().tasks
    )
    return good.replace(scenario=scenario()._replace(tasks=tasks))

  with pytest.raises(ValueError, match=r"token ids \[9\], task '.*' has \[8\]; fill .* with -1"):
    check_experiment(with_inputs(lambda ids: ids[:, :8]))
  with pytest.raises(ValueError, match=r"of dtype int32, task '.*' has int64"):
    check_experiment(with_inputs(lambda ids: ids.astype(np.int64)))


@pytest.mark.parametrize('part', ['train', 'test'])
@pytest.mark.parametrize('bad', [3 * CLASSES, -2])
def test_ids_beyond_the_vocabulary_are_refused_wherever_they_are(part, bad):
  good = experiment(finetune(reader(), CAPACITY, peft=lora(rank=2)))
  task = scenario().tasks[1]
  split = getattr(task, part)
  ids = split.inputs.copy()
  ids[split.rows[3], 4] = bad
  changed = task._replace(**{part: split._replace(inputs=ids)})
  tasks = (scenario().tasks[0], changed, scenario().tasks[2])
  with pytest.raises(ValueError, match=rf'ids 0..17, .*task .* has {bad} in example 3 at 4'):
    check_experiment(good.replace(scenario=scenario()._replace(tasks=tasks)))


def test_test_data_are_checked_as_training_data():
  good = experiment(finetune(reader(), CAPACITY, peft=lora(rank=2)))
  tasks = tuple(
    task._replace(test=task.test._replace(inputs=task.test.inputs[:, :8]))
    for task in scenario().tasks
  )
  with pytest.raises(ValueError, match=r'the test set of task .* has \[8\]'):
    check_experiment(good.replace(scenario=scenario()._replace(tasks=tasks)))


def test_weights_that_are_not_finite_are_refused():
  good = experiment(finetune(reader(), CAPACITY, peft=lora(rank=2)))
  bad = jax.tree.map(lambda leaf: leaf, frozen())
  bad['norm'] = {'scale': bad['norm']['scale'].at[3].set(jnp.nan)}
  with pytest.raises(ValueError, match='the weights of decoder are not finite: norm/scale'):
    check_experiment(good.replace(model=good.model._replace(params=bad)))


def test_the_identity_tells_how_texts_were_filled_up():
  found = describe(experiment(finetune(reader(), CAPACITY, peft=lora(rank=2))))
  assert found['value_range'] == 'token ids, -1 for padding'
