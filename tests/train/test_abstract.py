"""Programs are made without a run, for any method, and none of them waits for the host."""

import jax
import pytest
from tinies import ANYWHERE, METHOD_NAMES, WRAPPED_NAMES
from tiny_runs import TRAINING, tiny_frozen, tiny_method

from pecft_jax.train import compile_steps, one_device
from pecft_jax.train.abstract import arguments

NAMES = [name for name in METHOD_NAMES if name.partition(':')[0] in ANYWHERE]
METHODS = {name: tiny_method(name) for name in (*NAMES, *WRAPPED_NAMES)}
FUNCTIONS = {'prepare': 'gather', 'consolidate': 'gather'} | {
  name: name for name in ('init', 'begin', 'train', 'end', 'predict', 'query')
}


def _primitives(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn.primitive.name
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _primitives(inner)


@pytest.mark.parametrize('name', METHODS)
def test_no_function_of_any_method_calls_python_or_moves_data_to_the_host(name):
  method, frozen = METHODS[name], tiny_frozen()
  steps = compile_steps(method, TRAINING.recipe, one_device(), frozen)
  given = arguments(steps, method, frozen, 4)
  found = set()
  for function, fields in FUNCTIONS.items():
    step = getattr(steps, function)
    if step is not None:
      found |= set(_primitives(step.trace(*getattr(given, fields)).jaxpr.jaxpr))
  assert {'dot_general', 'jit'} & found  # Something was looked at.
  outside = ('callback', 'print', 'infeed', 'outfeed', 'device_put', 'copy_to_host')
  assert not [primitive for primitive in found if any(word in primitive for word in outside)]


def test_a_callback_would_be_found():
  def told(x):
    jax.debug.print('{}', x)
    return jax.lax.cond(x > 0, lambda x: jax.pure_callback(abs, x, x), lambda x: x, x)

  found = set(_primitives(jax.make_jaxpr(told)(1.0).jaxpr))
  assert 'pure_callback' in found
  assert {'debug_callback', 'debug_print'} & found


def test_arguments_have_the_shapes_of_a_run():
  method, frozen = METHODS['derpp(finetune)'], tiny_frozen()
  steps = compile_steps(method, TRAINING.recipe, one_device(), frozen)
  given = arguments(steps, method, frozen, 6)
  state, log = jax.eval_shape(steps.train, *given.train)
  assert jax.tree.map(lambda a: a.shape, state) == jax.tree.map(lambda a: a.shape, given.train[0])
  assert given.train[2].x.shape == (6, *method.inputs.shape)
  assert log.loss.shape == ()
  memory = steps.train.lower(*given.train).compile().memory_analysis()
  assert memory.argument_size_in_bytes > 0
