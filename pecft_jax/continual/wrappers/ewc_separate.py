"""EWC with a penalty for each past task (Kirkpatrick et al., 2017, arXiv:1612.00796)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.ewc import ewc
from pecft_jax.continual.wrappers.importance import weighted_squares
from pecft_jax.continual.wrappers.wrap import check_forgets, ended
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Overcoming catastrophic forgetting in neural networks', '1612.00796'),
  carries='anchor and Fisher information, each as large as the parameters',
  tiny={
    '': lambda inner: ewc_separate(inner),
    'zero': lambda inner: ewc_separate(inner, strength=0),
  },
)
@recorded
def ewc_separate(inner: ContinualMethod, *, strength: float = 100.0) -> ContinualMethod:
  """Penalises the distance to the parameters after each past task, by their Fisher information.

  Adds strength / 2 x sum_t sum_i F_ti (theta_i - theta*_ti)^2, with F_t as in
  `ewc`, whose one anchor is that of the last task. The sum of squares over tasks
  is one square around their weighted mean plus a constant, so the state is as
  large as that of `ewc`, however many tasks there are, and the penalty is exact.

  Args:
    inner: any method that trains on every task.
    strength: lambda.

  Raises:
    ValueError: if wrapping `inner` has no meaning, or for a negative strength; at init, if all its
      parameters are reset at each task.

  >>> from pecft_jax.continual import ewc_separate, finetune
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> ewc_separate(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'ewc_separate(finetune)'
  """
  at_least(0, strength=strength)
  check_forgets(inner, 'ewc_separate')
  online = ewc(inner, strength=strength)

  def init(key, frozen):
    params, memory = online.init(key, frozen)
    return params, {**memory, 'rest': jnp.zeros(())}

  def loss(params, memory, env, batch, key):
    value, out = online.loss(params, memory, env, batch, key)
    return value + 0.5 * strength * memory['rest'], out

  def end_task(params, memory, env):
    params, new = ended(inner, params, memory['inner'], env)
    now = held_of(inner, params)
    old, anchor = memory['fisher'], memory['anchor']
    more = jax.tree.map(lambda s: s / jnp.maximum(memory['count'], 1), memory['squares'])
    rest = weighted_squares(jax.tree.map(joint_weight, old, more), anchor, now)
    return params, {
      'inner': new,
      'anchor': jax.tree.map(weighted_mean, old, anchor, more, now),
      'fisher': jax.tree.map(jnp.add, old, more),
      'squares': jax.tree.map(jnp.zeros_like, more),
      'count': jnp.zeros(()),
      'rest': memory['rest'] + rest,
    }

  return online._replace(
    name=f'ewc_separate({inner.name})', settings=None, init=init, loss=loss, end_task=end_task
  )


def weighted_mean(a: Array, x: Array, b: Array, y: Array) -> Array:
  """(a x + b y) / (a + b), and y where both weights are zero."""
  total = a + b
  return jnp.where(total > 0, x + b / jnp.where(total > 0, total, 1) * (y - x), y)


def joint_weight(a: Array, b: Array) -> Array:
  """The weight a b / (a + b) of (x - y)^2 in min_z a (z - x)^2 + b (z - y)^2."""
  total = a + b
  return jnp.where(total > 0, a / jnp.where(total > 0, total, 1) * b, 0)
