"""MAS: memory aware synapses (Aljundi et al., 2018, arXiv:1711.09601)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.importance import need_held, summed_gradients, weighted_squares
from pecft_jax.continual.wrappers.wrap import consolidated, ended, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Memory aware synapses: learning what (not) to forget', '1711.09601'),
  carries='anchor and importance, each as large as the parameters',
  tiny={'': lambda inner: mas(inner), 'zero': lambda inner: mas(inner, strength=0)},
)
@recorded
def mas(inner: ContinualMethod, *, strength: float = 1.0) -> ContinualMethod:
  """Penalises changes of parameters by how much they change the outputs; no labels are needed.

  Adds strength x sum_i Omega_i (theta_i - anchor_i)^2 (eq. 4). After each task
  Omega_i grows by the mean over its examples of |d ||f(x)||^2 / d theta_i| (eq. 3),
  with f the logits of all classes seen; the anchor moves to the new parameters.
  The authors' code adds up the gradients of a batch before it takes absolute values,
  unless its batch is 1. Parameters that the inner method resets at each task
  (`renewed`) are left out.

  Args:
    inner: any method that trains on every task.
    strength: lambda.

  Raises:
    ValueError: if wrapping `inner` has no meaning, or for a negative strength; at init, if all its
      parameters are reset at each task.

  >>> from pecft_jax.continual import finetune, mas
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> mas(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'mas(finetune)'
  """
  at_least(0, strength=strength)
  classes = inner.capacity.problem.classes
  held = lambda params: held_of(inner, params)

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    some = need_held('mas', inner, params)
    zeros = lambda: jax.tree.map(jnp.zeros_like, some)
    extra = {'anchor': zeros(), 'importance': zeros(), 'sums': zeros(), 'count': jnp.zeros(())}
    return params, {'inner': memory, **extra}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    term = weighted_squares(memory['importance'], memory['anchor'], held(params))
    return value + strength * term, out

  def consolidate(params, memory, env, batch):
    def squared_norm(out, y):
      del y
      return jnp.square(jnp.where(env.task.seen, out.logits, 0) if classes else out.logits).sum()

    more = summed_gradients(inner, params, memory['inner'], env, batch, squared_norm, jnp.abs)
    sums = jax.tree.map(jnp.add, memory['sums'], more)
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'sums': sums, 'count': memory['count'] + batch.valid.sum()}

  def end_task(params, memory, env):
    params, new = ended(inner, params, memory['inner'], env)
    grown = lambda omega, s: omega + s / jnp.maximum(memory['count'], 1)
    return params, {
      'inner': new,
      'anchor': held(params),
      'importance': jax.tree.map(grown, memory['importance'], memory['sums']),
      'sums': jax.tree.map(jnp.zeros_like, memory['sums']),
      'count': jnp.zeros(()),
    }

  return wrap(inner, 'mas', init=init, loss=loss, consolidate=consolidate, end_task=end_task)
