"""Programs are made without a run, for any method, and none of them waits for the host."""

import jax
import pytest
from tinies import METHOD_NAMES, WRAPPED_NAMES
from tiny_runs import TRAINING, tiny_frozen, tiny_method, world_of

from pecft_jax.about import tinies
from pecft_jax.paths import named_leaves
from pecft_jax.peft import PEFTS
from pecft_jax.train import compile_steps, one_device
from pecft_jax.train.abstract import arguments

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


@pytest.mark.parametrize('name', (*METHOD_NAMES, *WRAPPED_NAMES))
def test_no_function_of_any_method_calls_python_or_moves_data_to_the_host(name):
  method, frozen = tiny_method(name), world_of(name).model.params
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


@pytest.mark.parametrize(
  'name', (*METHOD_NAMES, *WRAPPED_NAMES, *(f'finetune[{name}]' for name in tinies(PEFTS)))
)
def test_a_state_keeps_its_types_so_that_nothing_is_compiled_twice(name):
  method, frozen = tiny_method(name), world_of(name).model.params
  steps = compile_steps(method, TRAINING.recipe, one_device(), frozen)
  given = arguments(steps, method, frozen, 4)
  start = jax.eval_shape(steps.init, jax.random.key(0), frozen)
  begun = jax.eval_shape(steps.begin, start, *given.begin[1:])
  trained, _ = jax.eval_shape(steps.train, begun, *given.train[1:])
  ended = jax.eval_shape(steps.end, trained, *given.end[1:])
  # A weak type, as of `jnp.full(shape, 0.1)`, becomes another one in the first update.
  types = lambda state: [(n, a.shape, a.dtype, a.weak_type) for n, a in named_leaves(state)]
  assert types(start) == types(begun) == types(trained) == types(ended)


def test_a_callback_would_be_found():
  def told(x):
    jax.debug.print('{}', x)
    return jax.lax.cond(x > 0, lambda x: jax.pure_callback(abs, x, x), lambda x: x, x)

  found = set(_primitives(jax.make_jaxpr(told)(1.0).jaxpr))
  assert 'pure_callback' in found
  assert {'debug_callback', 'debug_print'} & found


def test_arguments_have_the_shapes_of_a_run():
  method, frozen = tiny_method('derpp(finetune)'), tiny_frozen()
  steps = compile_steps(method, TRAINING.recipe, one_device(), frozen)
  given = arguments(steps, method, frozen, 6)
  state, log = jax.eval_shape(steps.train, *given.train)
  assert jax.tree.map(lambda a: a.shape, state) == jax.tree.map(lambda a: a.shape, given.train[0])
  assert given.train[2].x.shape == (6, *method.inputs.shape)
  assert log.loss.shape == ()
  memory = steps.train.lower(*given.train).compile().memory_analysis()
  assert memory.argument_size_in_bytes > 0
