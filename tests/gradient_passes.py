"""The pass over gradients of a calibration, on the tiny model, beside the same in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_runs import TRAINING, tiny_backbone, tiny_frozen, tiny_scenario

from pecft_jax.continual import finetune
from pecft_jax.continual.plan import plan_of
from pecft_jax.peft import nothing
from pecft_jax.train import phases
from pecft_jax.train.state import init_state
from pecft_jax.train.update import train_step
from pecft_jax.typing import Batch, Capacity


def started(peft):
  """A method with a transform, and its state at the start of a task of four classes."""
  method = finetune(tiny_backbone(), Capacity(1, 4), peft=peft)
  state = init_state(method, TRAINING.recipe, jax.random.key(0), tiny_frozen())
  kernel = jax.random.normal(jax.random.key(5), state.params['head'].kernel.shape)
  head = state.params['head']._replace(kernel=kernel)
  task = state.task._replace(classes=~state.task.classes)
  return method, state._replace(params={**state.params, 'head': head}, task=task)


def batches():
  """Two batches of five rows, the last of which fills up."""
  task = tiny_scenario().tasks
  rows = np.concatenate([each.train.rows[:5] for each in task])
  x = tiny_scenario().tasks[0].train.inputs[rows]
  y = np.arange(10, dtype=np.int32) % 4
  valid, number = np.arange(10) < 9, np.arange(10, dtype=np.int32)
  return [Batch(x[at], y[at], valid[at], number[at]) for at in (slice(5), slice(5, 10))]


def passed(peft):
  """`(delta before, statistics, delta after)` of the pass over both batches."""
  method, state = started(peft)
  gather, end = plan_of(method)[1:3]
  step = jax.jit(functools.partial(phases.calibrate, method, gather, 0))
  before = state.params['delta']
  for batch in batches():
    state = step(state, tiny_frozen(), batch)
  statistics = state.extra[gather.name]
  state = phases.calibrated(phases.Run(method, TRAINING.recipe), end, state, tiny_frozen())
  return before, statistics, state.params['delta']


def after_updates(peft, count):
  """The delta after each of a task's updates."""
  method, state = started(peft)
  task = state.task._replace(seen=state.task.classes, steps=jnp.asarray(count, jnp.int32))
  state = state._replace(task=task)
  step = jax.jit(functools.partial(train_step, method, TRAINING.recipe))
  deltas, some = [], batches()
  for number in range(count):
    state, log = step(state, tiny_frozen(), some[number % 2])
    assert np.isfinite(log.loss) and log.finite
    deltas.append(state.params['delta'])
  return deltas


def by_hand():
  """Of each batch the gradients of its valid examples in float64: `[(dW [n, 8, 8], db [n, 8])]`."""
  _, state = started(nothing())
  head = np.float64(state.params['head'].kernel)
  weights, bias = (np.float64(tiny_frozen()['block_0']['attn']['q'][k]) for k in ('kernel', 'bias'))
  out = []
  for batch in batches():
    images = (np.float64(batch.x[batch.valid]) / 255 - 0.5) / 0.25
    rows = images[..., 0] @ np.float64(tiny_frozen()['embed']['kernel'])
    x = rows.sum(1) / (rows.shape[1] + 1)  # The first token is zero, and gets the mean of all.
    h = np.tanh(x @ weights + bias)
    p = np.exp(h @ head)
    p = p / p.sum(1, keepdims=True) - np.eye(4)[batch.y[batch.valid]]
    z = (p @ head.T) * (1 - h**2)
    out.append((x[:, :, None] * z[:, None], z))
  return out
