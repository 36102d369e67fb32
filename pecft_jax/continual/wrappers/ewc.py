"""Online EWC (Kirkpatrick et al., 2017, arXiv:1612.00796; Schwarz et al., 2018,
arXiv:1805.06370).
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.wrap import consolidated, ended, wrap
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, ContinualMethod


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
    if not jax.tree.leaves(held(params)):
      raise ValueError(f'ewc has no parameters to hold in {inner.name}: all are reset at each task')
    zeros = lambda: jax.tree.map(jnp.zeros_like, held(params))
    extra = {'anchor': zeros(), 'fisher': zeros(), 'squares': zeros(), 'count': jnp.zeros(())}
    return params, {'inner': memory, **extra}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    term = lambda f, a, p: (f * jnp.square(p - a)).sum()
    terms = jax.tree.map(term, memory['fisher'], memory['anchor'], held(params))
    return value + 0.5 * strength * sum(jax.tree.leaves(terms), jnp.zeros(())), out

  def consolidate(params, memory, env, batch):
    def negative_log_likelihood(part, x, y):
      one = jax.tree.map(lambda a: a[None], x)
      whole = {name: combine(part[name], kept[name]) for name in part}
      out = inner.forward({**params, **whole}, memory['inner'], env, one, None)
      return problem.losses(out.logits, y[None], env.task.seen)[0]

    kept = split_kept(params)[1]

    def squared(x, y, valid):
      grads = jax.grad(negative_log_likelihood)(held(params), x, y)
      return jax.tree.map(lambda g: jnp.where(valid, jnp.square(g), 0.0), grads)

    def add(squares, examples):
      # One gradient per example, on the device of the example.
      each = jax.vmap(squared, spmd_axis_name='data')(*examples)
      return jax.tree.map(lambda s, g: s + g.sum(0), squares, each), None

    examples = _in_chunks((batch.x, batch.y, batch.valid), 16)
    squares, _ = jax.lax.scan(add, memory['squares'], examples)
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


def _in_chunks(tree: Any, most: int) -> Any:
  """Leading axis B to [number of chunks, rows of each], with zeros at the end.

  A chunk has rows from all over the batch, and so from every device.
  """
  rows = jax.tree.leaves(tree)[0].shape[0]
  count = -(-rows // most)
  size = -(-rows // count)

  def one(a: Array) -> Array:
    a = jnp.pad(a, [(0, size * count - rows)] + [(0, 0)] * (a.ndim - 1))
    return a.reshape(size, count, *a.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(one, tree)
