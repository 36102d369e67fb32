"""Mistakes of authors are named by method, hook and leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import tiny_backbone, tiny_frozen

from pecft_jax.continual.core import from_forward
from pecft_jax.devices.sharding import one_device
from pecft_jax.recipes import sgd
from pecft_jax.train.abstract import arguments
from pecft_jax.train.step import compile_steps
from pecft_jax.typing import Capacity, Kept, Output

WIDTH, CLASSES = 8, 4


def traced(**hooks):
  """Compiles nothing: every function of a method is traced."""
  backbone, capacity = tiny_backbone(), Capacity(2, CLASSES)

  def init(key, frozen):
    return {'w': jnp.zeros((WIDTH, CLASSES))}, {'sums': jnp.zeros(3)}

  def forward(params, memory, env, x, key):
    h = jnp.ones((len(x), WIDTH))
    return Output(h @ params['w'], jnp.zeros(len(x)), h)

  given = {'init': init, 'forward': forward, **hooks}
  method = from_forward(
    'mine', backbone, capacity, given.pop('init'), given.pop('forward'), masked=False, **given
  )
  steps = compile_steps(method, sgd(0.1), one_device(), tiny_frozen())
  found = arguments(steps, method, tiny_frozen(), 5)
  for name in ('begin', 'prepare', 'train', 'consolidate', 'end', 'predict'):
    fn = getattr(steps, name)
    given = found.gather if name in ('prepare', 'consolidate') else getattr(found, name)
    if fn is not None:
      fn.trace(*given)


def test_a_sound_method_passes():
  traced()


def branching(params, memory, env, batch):
  return memory if batch.y[0] > 0 else {'sums': memory['sums'] + 1}


def start(**fields):
  def init(key, frozen):
    return {'w': jnp.zeros((WIDTH, CLASSES)), **fields}, {'sums': jnp.zeros(3)}

  return init


def shared(key, frozen):
  w = jnp.zeros((WIDTH, CLASSES))
  return {'w': w}, {'sums': jnp.zeros(3), 'anchor': w}


MISTAKES = {
  'an integer in params': (
    {'init': start(count=jnp.zeros((), jnp.int32))},
    ValueError, "mine: params 'count' is int32, and only floating-point arrays are trained",
  ),
  'a number that is no array': (
    {'init': start(scale=1.0)}, TypeError, "mine: params 'scale' must be a jax array, got float",
  ),
  'an array in both': (
    {'init': shared}, ValueError, "the same array is in params and in memory, as .*w and anchor",
  ),
  'a forward pass that gives a tuple': (
    {'forward': lambda params, memory, env, x, key: (jnp.zeros((len(x), CLASSES)), 0)},
    TypeError, r'mine: forward must return Output\(logits, aux_loss, features\), got tuple',
  ),
  'a scalar regulariser': (
    {'forward': lambda p, m, e, x, k: Output(jnp.ones((len(x), 8)) @ p['w'], jnp.zeros(()), None)},
    ValueError, r'mine: aux_loss must be one number per example \[5\], got shape \[\]',
  ),
  'a loss per example': (
    {'loss': lambda p, m, e, b, k: (b.y * p['w'].sum(), Output(b.y, b.y * 0.0, None))},
    ValueError, r'mine: loss must give one number, got shape \[5\]',
  ),
  'a Python if': (
    {'consolidate': branching},
    ValueError, 'mine: consolidate uses a traced value as a Python value',
  ),
  'numpy on a traced value': (
    {'prepare': lambda p, memory, e, batch: {'sums': memory['sums'] + np.asarray(batch.y).sum()}},
    ValueError, 'mine: prepare uses a traced value as a Python value',
  ),
  'another shape': (
    {'consolidate': lambda p, memory, e, b: {'sums': jnp.zeros(4)}},
    ValueError, r'mine: consolidate must keep .*memory/sums: float32\[3\] became float32\[4\]',
  ),
  'another dtype': (
    {'end_task': lambda params, memory, env: (params, {'sums': memory['sums'] > 0})},
    ValueError, r'mine: end_task must keep .*float32\[3\] became bool\[3\]',
  ),
  'a lost leaf': (
    {'begin_task': lambda params, memory, env, key: (params, {})},
    ValueError, r'mine: begin_task must keep .*memory/sums: float32\[3\] became nothing',
  ),
  'memory alone where both are asked for': (
    {'observe': lambda p, memory, env, batch, out, update, key: memory},
    TypeError, 'mine: observe must return two values, got dict',
  ),
}  # fmt: skip


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_have_sentences(mistake):
  hooks, error, message = MISTAKES[mistake]
  with pytest.raises(error, match=message):
    traced(**hooks)


def test_integers_are_welcome_where_they_are_kept():
  traced(init=start(mask=Kept(jnp.arange(3))))


def test_the_users_own_frame_is_in_the_traceback():
  with pytest.raises(ValueError) as caught:
    traced(consolidate=branching)
  frames = []
  cause = caught.value.__cause__
  assert isinstance(cause, jax.errors.JAXTypeError)
  trace = cause.__traceback__
  while trace is not None:
    frames.append(trace.tb_frame.f_code.co_name)
    trace = trace.tb_next
  assert 'branching' in frames
