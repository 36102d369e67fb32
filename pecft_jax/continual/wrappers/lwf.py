"""LwF: learning without forgetting (Li and Hoiem, 2016, arXiv:1606.09282)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import mean_of_valid
from pecft_jax.continual.wrappers.wrap import ended, wrap
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod, Fit


@about(
  'wrapper',
  'wrappers',
  Paper('Learning without forgetting', '1606.09282'),
  carries='the parameters from before the task',
  tiny={'': lambda inner: lwf(inner), 'zero': lambda inner: lwf(inner, strength=0)},
)
@recorded(defaults={'recipe': lambda: sgd(0.01)})
def lwf(
  inner: ContinualMethod,
  *,
  strength: float = 1.0,
  temperature: float = 2.0,
  warmup: int = 0,
  recipe: Recipe | None = None,
) -> ContinualMethod:
  """Distils the model from before the task, on the new data, over the old classes.

  Adds strength x tau^2 KL(p_old^tau || p_new^tau), whose gradient has one size whatever tau.
  Mammoth has no tau^2 and a strength of 0.5: with tau = 2 that is `strength=0.125` here, an eighth
  of the default. The teacher sees the batch as the student does, its views included. The paper
  first trains the new part of the head by itself, which `warmup` does.

  Args:
    inner: any method that trains on every task.
    strength: lambda.
    temperature: tau.
    warmup: epochs, from the second task on, in which the head alone is trained before the task, on
      the task's own classes; needs a method with a head.
    recipe: of the warm-up; `sgd(0.01)` by default.

  Raises:
    ValueError: if wrapping `inner` has no meaning, tau is not positive, the strength or the
      warm-up is negative, or there is no head to warm up.

  >>> from pecft_jax.continual import finetune, lwf
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = lwf(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'lwf(finetune)'
  """
  above(0, temperature=temperature)
  at_least(0, strength=strength, warmup=warmup)
  if warmup and inner.head is None:
    raise ValueError(f'warmup trains a head, and {inner.name} has none')

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

  def new_slots(params, memory, env, batch, key):
    out = inner.forward(params, memory['inner'], env, batch.x, key)
    losses = inner.capacity.problem.losses(out.logits, batch.y, env.task.classes)
    return mean_of_valid(losses, batch.valid)

  fit = Fit(
    'warm up',
    new_slots,
    after='prepare',
    recipe=sgd(0.01) if recipe is None else recipe,
    trains=('head',),
    epochs=max(warmup, 1),
    when=lambda task: task > 0,
  )
  phases = (fit,) if warmup else ()
  return wrap(inner, 'lwf', init=init, loss=loss, end_task=end_task, phases=phases)
