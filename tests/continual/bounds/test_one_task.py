import jax
import numpy as np
import pytest

from pecft_jax.continual import finetune, single_task
from pecft_jax.peft import lora
from pecft_jax.problems import regression

from ..tiny import CAPACITY, CLASSES, TOY, batch, env, equal, frozen_of, shaken

FC = lora('fc$', rank=2)


def started(method):
  frozen = frozen_of(TOY)
  params, memory = method.init(jax.random.key(0), frozen)
  return frozen, params, memory


def test_each_task_starts_anew_on_its_own_data():
  method = single_task(TOY, CAPACITY, peft=FC)
  frozen, params, memory = started(method)
  fresh, _ = method.begin_task(shaken(params, 5), memory, env(frozen, 1), jax.random.key(0))
  equal(fresh['delta'], params['delta'])
  equal(fresh['head'].kernel, params['head'].kernel)
  assert not method.cumulative


def test_it_trains_as_fine_tuning_among_the_classes_of_the_task():
  method, plain = single_task(TOY, CAPACITY, peft=FC), finetune(TOY, CAPACITY, peft=FC, masked=True)
  frozen, params, memory = started(method)
  some = batch(TOY.inputs.shape, CLASSES[1], 0)
  loss = lambda m: m.loss(shaken(params, 5), memory, env(frozen, 1), some, jax.random.key(1))[0]
  assert loss(method) == loss(plain)


@pytest.mark.parametrize('t', range(3))
def test_it_answers_among_the_classes_of_the_task(t):
  method = single_task(TOY, CAPACITY, peft=FC)
  frozen, params, memory = started(method)
  where, some = env(frozen, t), batch(TOY.inputs.shape, CLASSES[t], 0)
  fresh, memory = method.begin_task(params, memory, where, jax.random.key(1))
  grads = jax.grad(lambda p: method.loss(p, memory, where, some, None)[0])(fresh)
  trained = jax.tree.map(lambda p, g: p - g, fresh, grads)
  answers = np.asarray(method.predict(trained, memory, where, some.x))
  assert np.isin(answers.argmax(-1), CLASSES[t]).all()
  assert np.isin(np.flatnonzero(np.asarray(grads['head'].bias)), CLASSES[t]).all()


def test_numbers_are_answered_whole():
  method = single_task(TOY, CAPACITY._replace(problem=regression(7)), peft=FC)
  frozen, params, memory = started(method)
  answers = method.predict(params, memory, env(frozen, 1), batch(TOY.inputs.shape, (0,), 0).x)
  assert np.isfinite(answers).all()
