"""RWalk: Riemannian walk for incremental learning (Chaudhry et al., 2018, arXiv:1801.10112)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import held_of
from pecft_jax.continual.wrappers.importance import need_held, weighted_squares
from pecft_jax.continual.wrappers.wrap import begun, ended, observed, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod, Params


@about(
  'wrapper',
  'wrappers',
  Paper('Riemannian walk for incremental learning: understanding forgetting and intransigence',
        '1801.10112'),
  carries='eight arrays, each as large as the parameters',
  tiny={
    '': lambda inner: rwalk(inner, interval=2),
    'zero': lambda inner: rwalk(inner, interval=2, strength=0),
  },
)  # fmt: skip
@recorded
def rwalk(
  inner: ContinualMethod,
  *,
  strength: float = 1.0,
  decay: float = 0.9,
  interval: int = 10,
  damping: float = 1e-3,
) -> ContinualMethod:
  """Penalises changes of parameters by their Fisher information and by how they reduced the loss.

  Adds strength x sum_i (F_i + s_i) (theta_i - anchor_i)^2 (eq. 10), with F and s each
  scaled to [0, 1] over all parameters. In training, after each `interval` of
  updates: s_i grows by max(dL_i, 0) / (F_i D_i^2 / 2 + damping), with dL_i the sum of -g_i x
  (change of theta_i) over the interval, g the gradient of the loss without this
  term, and D_i the change over the interval (eq. 8); then F <- decay x (mean of g^2) +
  (1 - decay) x F (eq. 9), where it was zero before: the mean alone. After a task s
  is the mean of that of past tasks and that of this one. No pass over the data is
  needed.

  The authors' code leaves out the 1 / 2, adds the mean of scores to the old ones instead
  of taking it, starts from F = 0, and drops the updates after the last whole interval. The
  paper keeps some old examples besides: put `er` around it.

  Args:
    inner: any method that trains on every task.
    strength: lambda.
    decay: alpha, the weight of the newest gradients in F.
    interval: updates between two measurements; the authors' code has 50 for CIFAR.
    damping: epsilon, which keeps the quotient finite.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a negative strength, a decay outside
      (0, 1], an interval below 1, or a damping that is not positive; at init, if all its
      parameters are reset at each task.

  >>> from pecft_jax.continual import finetune, rwalk
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> rwalk(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'rwalk(finetune)'
  """
  at_least(0, strength=strength)
  at_least(1, interval=interval)
  above(0, damping=damping)
  if not 0 < decay <= 1:
    raise ValueError(f'expected a decay in (0, 1], got {decay}')
  held = lambda params: held_of(inner, params)

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    some = need_held('rwalk', inner, params)
    names = 'anchor', 'importance', 'fisher', 'score', 'gain', 'squares', 'path', 'last'
    zeros = {name: jax.tree.map(jnp.zeros_like, some) for name in names}
    return params, {'inner': memory, **zeros, 'updates': jnp.zeros(())}

  def begin_task(params, memory, env, key):
    params, new = begun(inner, params, memory['inner'], env, key)
    # The walk of a task starts at what its first update starts from.
    return params, {**memory, 'inner': new, 'last': jax.tree.map(jnp.copy, held(params))}

  def loss(params, memory, env, batch, key):
    value, out = inner.loss(params, memory['inner'], env, batch, key)
    term = weighted_squares(memory['importance'], memory['anchor'], held(params))
    return value + strength * term, out

  def observe(params, memory, env, batch, out, update, key):
    before, now = held(update.before), held(params)

    def own(g, importance, anchor, old):
      return g - 2 * strength * importance * (old - anchor)

    grads = jax.tree.map(own, held(update.grads), memory['importance'], memory['anchor'], before)
    add = lambda path, g, old, new: path - g * (new - old)
    walked = {
      'path': jax.tree.map(add, memory['path'], grads, before, now),
      'squares': jax.tree.map(lambda s, g: s + jnp.square(g), memory['squares'], grads),
      'updates': memory['updates'] + 1,
    }
    memory = {**memory, **walked}
    due = memory['updates'] >= interval
    memory = jax.lax.cond(due, lambda m: measured(m, now, decay, damping), lambda m: m, memory)
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, key)
    return params, {**memory, 'inner': new}

  def end_task(params, memory, env):
    now = held(params)
    due = memory['updates'] > 0  # Updates after the last whole interval count, too.
    memory = jax.lax.cond(due, lambda m: measured(m, now, decay, damping), lambda m: m, memory)
    first = env.task.index == 0
    mean = lambda old, new: jnp.where(first, new, (old + new) / 2)
    score = jax.tree.map(mean, memory['score'], memory['gain'])
    importance = jax.tree.map(jnp.add, to_unit(memory['fisher']), to_unit(score))
    params, new = ended(inner, params, memory['inner'], env)
    return params, {
      **memory,
      'inner': new,
      'anchor': jax.tree.map(jnp.copy, held(params)),
      'importance': importance,
      'score': score,
      'gain': jax.tree.map(jnp.zeros_like, score),
    }

  return wrap(
    inner, 'rwalk', init=init, begin_task=begin_task, loss=loss, observe=observe, end_task=end_task
  )


def measured(memory: dict, now: Params, decay: float, damping: float) -> dict:
  """The memory of `rwalk` after an interval that ends at the parameters `now`."""
  mean = jax.tree.map(lambda s: s / memory['updates'], memory['squares'])
  largest = jnp.stack([f.max() for f in jax.tree.leaves(memory['fisher'])]).max()
  # Before there is a Fisher, that of the first interval stands for it.
  fisher = jax.tree.map(lambda f, m: jnp.where(largest > 0, f, m), memory['fisher'], mean)

  def grown(gain, path, f, new, old):
    return gain + jnp.maximum(path, 0) / (0.5 * f * jnp.square(new - old) + damping)

  gain = jax.tree.map(grown, memory['gain'], memory['path'], fisher, now, memory['last'])
  zeros = jax.tree.map(jnp.zeros_like, mean)
  return {
    **memory,
    'gain': gain,
    'fisher': jax.tree.map(lambda f, m: decay * m + (1 - decay) * f, fisher, mean),
    'squares': zeros,
    'path': jax.tree.map(jnp.copy, zeros),
    'last': jax.tree.map(jnp.copy, now),
    'updates': jnp.zeros(()),
  }


def to_unit(tree: Params) -> Params:
  """All numbers of a tree, moved and scaled together to [0, 1]; zeros where all are the same."""
  ends = lambda f: jnp.stack([f(leaf) for leaf in jax.tree.leaves(tree)])
  low, high = ends(jnp.min).min(), ends(jnp.max).max()
  width = jnp.where(high > low, high - low, 1)
  one = lambda leaf: (leaf - low) / width
  return jax.tree.map(one, tree)
