"""Online EWC (Kirkpatrick et al., 2017, arXiv:1612.00796; Schwarz et al., 2018,
arXiv:1805.06370).
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.importance import need_held, summed_gradients, weighted_squares
from pecft_jax.continual.wrappers.wrap import consolidated, ended, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Overcoming catastrophic forgetting in neural networks', '1612.00796'),
  Paper('Progress & Compress: a scalable framework for continual learning', '1805.06370'),
  carries='anchor and Fisher information, each as large as the parameters',
  tiny={'': lambda inner: ewc(inner), 'zero': lambda inner: ewc(inner, strength=0)},
)
@recorded
def ewc(inner: ContinualMethod, *, strength: float = 100.0, decay: float = 1.0) -> ContinualMethod:
  """Penalises changes of parameters by their Fisher information on past tasks.

  Adds strength / 2 x sum_i F_i (theta_i - anchor_i)^2. After each task
  F <- decay x F + F_t, with F_t the mean over its examples of squared
  gradients of the log-likelihood of the true label among all classes seen (the
  empirical Fisher), and the anchor moves to the new parameters. Parameters that
  the inner method resets at each task (`renewed`) are left out. Mammoth's code
  has no 1 / 2, and weights each example with the probability of its label.
  `ewc_separate` has an anchor for each past task.

  Args:
    inner: any method that trains on every task.
    strength: lambda.
    decay: gamma; 1 weights all past tasks equally.

  Raises:
    ValueError: if wrapping `inner` has no meaning; at init, if all its parameters
      are reset at each task.

  >>> from pecft_jax.continual import ewc, finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = ewc(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'ewc(finetune)'
  """
  if strength < 0 or not 0 <= decay <= 1:
    raise ValueError(f'expected strength >= 0 and 0 <= decay <= 1, got {strength} and {decay}')

  problem = inner.capacity.problem
  held = lambda params: held_of(inner, params)

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    some = need_held('ewc', inner, params)
    zeros = lambda: jax.tree.map(jnp.zeros_like, some)
    extra = {'anchor': zeros(), 'fisher': zeros(), 'squares': zeros(), 'count': jnp.zeros(())}
    return params, {'inner': memory, **extra}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    term = weighted_squares(memory['fisher'], memory['anchor'], held(params))
    return value + 0.5 * strength * term, out

  def consolidate(params, memory, env, batch):
    likelihood = lambda out, y: problem.losses(out.logits, y, env.task.seen)[0]
    more = summed_gradients(inner, params, memory['inner'], env, batch, likelihood, jnp.square)
    squares = jax.tree.map(jnp.add, memory['squares'], more)
    count = memory['count'] + batch.valid.sum()
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'squares': squares, 'count': count}

  def end_task(params, memory, env):
    params, new = ended(inner, params, memory['inner'], env)
    mean = lambda f, s: decay * f + s / jnp.maximum(memory['count'], 1)
    return params, {
      'inner': new,
      'anchor': held(params),
      'fisher': jax.tree.map(mean, memory['fisher'], memory['squares']),
      'squares': jax.tree.map(jnp.zeros_like, memory['squares']),
      'count': jnp.zeros(()),
    }

  return wrap(inner, 'ewc', init=init, loss=loss, consolidate=consolidate, end_task=end_task)
