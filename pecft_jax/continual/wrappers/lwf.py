"""LwF: learning without forgetting (Li and Hoiem, 2016, arXiv:1606.09282)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import mean_of_valid
from pecft_jax.continual.wrappers.wrap import ended, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Learning without forgetting', '1606.09282'),
  carries='the parameters from before the task',
  tiny={'': lambda inner: lwf(inner), 'zero': lambda inner: lwf(inner, strength=0)},
)
@recorded
def lwf(
  inner: ContinualMethod, *, strength: float = 1.0, temperature: float = 2.0
) -> ContinualMethod:
  """Distils the model from before the task, on the new data, over the old classes.

  Adds strength x tau^2 KL(p_old^tau || p_new^tau).

  Args:
    inner: any method that trains on every task.
    strength: lambda.
    temperature: tau.

  Raises:
    ValueError: if wrapping `inner` has no meaning, tau is not positive, or the strength is
      negative.

  >>> from pecft_jax.continual import finetune, lwf
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = lwf(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'lwf(finetune)'
  """
  above(0, temperature=temperature)
  at_least(0, strength=strength)

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    teacher = jax.tree.map(jnp.zeros_like, params)
    return params, {'inner': memory, 'teacher': teacher}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    # Without classes, every answer is distilled from the second task on.
    known = env.task.past

    def distilled(logits):
      teacher = inner.forward(memory['teacher'], memory['inner'], env, batch.x, None)
      old = jax.lax.stop_gradient(teacher.logits)
      losses = inner.capacity.problem.divergence(old, logits, known, temperature)
      return temperature**2 * mean_of_valid(losses, batch.valid)

    # The first task has no teacher, and computes none.
    first = lambda logits: jnp.zeros(())
    term = jax.lax.cond(env.task.index > 0, distilled, first, out.logits)
    return value + strength * term, out

  def end_task(params, memory, env):
    params, new = ended(inner, params, memory['inner'], env)
    return params, {'inner': new, 'teacher': params}

  return wrap(inner, 'lwf', init=init, loss=loss, end_task=end_task)
