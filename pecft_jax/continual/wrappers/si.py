"""SI: synaptic intelligence (Zenke et al., 2017, arXiv:1703.04200)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.importance import need_held, weighted_squares
from pecft_jax.continual.wrappers.wrap import begun, ended, observed, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Continual learning through synaptic intelligence', '1703.04200'),
  carries='anchor, importance and path, each as large as the parameters',
  tiny={'': lambda inner: si(inner), 'zero': lambda inner: si(inner, strength=0)},
)
@recorded
def si(inner: ContinualMethod, *, strength: float = 1.0, damping: float = 1e-3) -> ContinualMethod:
  """Penalises changes of parameters by how much they reduced the loss of past tasks.

  Adds strength x sum_i Omega_i (theta_i - anchor_i)^2 (eq. 4). Over the steps of
  a task omega_i adds up -g_i x (change of theta_i), with g the gradient of the
  loss without this term; after it Omega_i grows by max(omega_i, 0) / (D_i^2 +
  damping), D_i being the change of the parameter over the task (eq. 5). Parameters
  that the inner method resets at each task (`renewed`) are left out.

  Args:
    inner: any method that trains on every task.
    strength: c.
    damping: xi, which keeps the quotient finite.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a negative strength or a
      damping that is not positive; at init, if all its parameters are reset at each task.

  >>> from pecft_jax.continual import finetune, si
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = si(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'si(finetune)'
  """
  if strength < 0 or damping <= 0:
    raise ValueError(f'expected strength >= 0 and damping > 0, got {strength} and {damping}')
  held = lambda params: held_of(inner, params)

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    some = need_held('si', inner, params)
    zeros = lambda: jax.tree.map(jnp.zeros_like, some)
    return params, {'inner': memory, 'anchor': zeros(), 'importance': zeros(), 'path': zeros()}

  def begin_task(params, memory, env, key):
    params, new = begun(inner, params, memory['inner'], env, key)
    # The path of the first task starts at the inner method's initial parameters.
    start = lambda anchor, now: jnp.where(env.task.index == 0, now, anchor)
    anchor = jax.tree.map(start, memory['anchor'], held(params))
    path = jax.tree.map(jnp.zeros_like, memory['path'])
    return params, {**memory, 'inner': new, 'anchor': anchor, 'path': path}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    term = weighted_squares(memory['importance'], memory['anchor'], held(params))
    return value + strength * term, out

  def observe(params, memory, env, batch, out, update, key):
    before, grads = held(update.before), held(update.grads)

    def add(path, importance, anchor, g, old, new):
      own = 2 * strength * importance * (old - anchor)  # The gradient of this wrapper's term.
      return path - (g - own) * (new - old)

    path = jax.tree.map(
      add, memory['path'], memory['importance'], memory['anchor'], grads, before, held(params)
    )
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, key)
    return params, {**memory, 'inner': new, 'path': path}

  def end_task(params, memory, env):
    params, new = ended(inner, params, memory['inner'], env)

    def grown(importance, path, anchor, now):
      return importance + jnp.maximum(path, 0) / (jnp.square(now - anchor) + damping)

    importance = jax.tree.map(
      grown, memory['importance'], memory['path'], memory['anchor'], held(params)
    )
    anchor = jax.tree.map(jnp.copy, held(params))
    return params, {**memory, 'inner': new, 'importance': importance, 'anchor': anchor}

  return wrap(
    inner, 'si', init=init, begin_task=begin_task, loss=loss, observe=observe, end_task=end_task
  )
