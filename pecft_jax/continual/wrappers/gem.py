"""GEM: gradient episodic memory (Lopez-Paz and Ranzato, 2017, arXiv:1706.08840)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.memory.cone import nonnegative_minimum
from pecft_jax.continual.wrappers.wrap import consolidated, wrap
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, ContinualMethod, Params


class Past(NamedTuple):
  """Examples of each task, sampled uniformly."""

  AXES = {'items': (None, 'slot', ...)}

  items: Any  # A pytree with leading axes [T, n].
  count: Array  # [T] int32, examples of each task so far, which may be more than n.


@about(
  'wrapper',
  'wrappers',
  Paper('Gradient episodic memory for continual learning', '1706.08840'),
  needs=('stored examples',),
  carries='examples of each task',
  tiny=lambda inner: gem(inner, size=20),
)
@recorded
def gem(
  inner: ContinualMethod, *, size: int = 500, margin: float = 0.5, ridge: float = 1e-3
) -> ContinualMethod:
  """Projects each gradient so that it raises the loss of no past task on its stored examples.

  Where g . g_k < 0 for some past task k, g becomes the nearest vector with g . g_k
  >= 0 for all of them (eq. 8). Its dual is a quadratic programme in one number per
  task, min_v v'GG'v / 2 + (Gg)'v with v >= margin (eq. 11), after which g <- g +
  G'v; it is solved exactly, by an active set. Each update computes the gradient of
  every past task, over all classes seen and all that is stored of the task: a pass
  over n rows for each. After training, a pass over a task's data samples its
  examples, so the first task is trained without projection.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept; n = N // T of each task.
    margin: the least weight of a past gradient once one is violated. The projection is
      exact for 0; the authors use 0.5, which favours old tasks.
    ridge: added to the diagonal of GG', times its mean: the authors add 1e-3, whatever
      the size of gradients.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for less than one example of
      each task, or a negative margin or ridge.

  >>> from pecft_jax.continual import finetune, gem
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> gem(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'gem(finetune)'
  """
  at_least(0, margin=margin, ridge=ridge)
  problem, tasks = inner.capacity.problem, inner.capacity.tasks
  if size < tasks:
    raise ValueError(f'gem needs an example of each of {tasks} tasks, got size={size}')
  example = jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype)
  item = {'x': example, 'y': problem.target}

  def init(key, frozen):
    k_inner, k_offer = jax.random.split(key)
    params, memory = inner.init(k_inner, frozen)
    one = buffers.empty(size // tasks, item).items
    every = jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), one)
    bank = Past(every, jnp.zeros(tasks, jnp.int32))
    # The pass that samples has no key of its own: it makes them from this one.
    return params, {'inner': memory, 'bank': bank, 'key': jax.random.key_data(k_offer)}

  def project(grads, params, memory, env, batch, key):
    k_inner, k_tasks = jax.random.split(key)
    if inner.project is not None:
      grads = inner.project(grads, params, memory['inner'], env, batch, k_inner)
    active, kept = split_kept(params)
    bank = memory['bank']

    def gradient(each):
      items, count, key = each
      valid = jnp.arange(size // tasks) < count

      def loss(part):
        out = inner.forward(combine(part, kept), memory['inner'], env, items['x'], key)
        losses = problem.losses(out.logits, items['y'], env.task.seen)
        return mean_of_valid(losses, valid)

      return jax.grad(loss)(active)

    def of_task(_, each):
      t, rest = each
      nothing = lambda rest: jax.tree.map(jnp.zeros_like, active)
      return None, jax.lax.cond(t < env.task.index, gradient, nothing, rest)

    def constrained(grads):
      rest = bank.items, bank.count, jax.random.split(k_tasks, tasks)
      _, past = jax.lax.scan(of_task, None, (jnp.arange(tasks), rest))
      there = (jnp.arange(tasks) < env.task.index) & (bank.count > 0)
      return in_cone(grads, past, there, margin, ridge)

    # In the first task nothing is stored, and no gradient is computed for it.
    return jax.lax.cond(env.task.index > 0, constrained, lambda g: g, grads)

  def consolidate(params, memory, env, batch):
    bank, t = memory['bank'], env.task.index
    own = buffers.Buffer(jax.tree.map(lambda a: a[t], bank.items), bank.count[t])
    key = jax.random.fold_in(jax.random.wrap_key_data(memory['key']), t)
    key = jax.random.fold_in(key, own.count)
    own = buffers.offer(own, {'x': raw(batch.x), 'y': batch.y}, batch.valid, key)
    items = jax.tree.map(lambda a, new: a.at[t].set(new), bank.items, own.items)
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'bank': Past(items, bank.count.at[t].set(own.count))}

  return wrap(inner, 'gem', init=init, project=project, consolidate=consolidate)


def in_cone(grads: Params, past: Params, there: Array, margin: float, ridge: float) -> Params:
  """The gradient that `gem` trains with.

  Args:
    grads: g.
    past: g_k, with leading axis T.
    there: [T] bool, the tasks that count.
    margin: as in `gem`.
    ridge: as in `gem`.
  """
  pairs = list(zip(jax.tree.leaves(past), jax.tree.leaves(grads), strict=True))
  tasks = there.shape[0]
  rows = lambda a: a.reshape(tasks, -1)
  times = lambda a, b: jnp.matmul(a, b, precision='highest')
  zeros = jnp.zeros((tasks, tasks))
  square = sum((times(rows(p), rows(p).T) for p, _ in pairs), zeros)  # [T, T]
  dots = sum((times(rows(p), g.ravel()) for p, g in pairs), jnp.zeros(tasks))  # [T]
  mean = jnp.where(there, jnp.diag(square), 0).sum() / jnp.maximum(there.sum(), 1)
  square += ridge * mean * jnp.eye(tasks)
  least = jnp.where(there, margin, 0.0)
  # v = least + u with u >= 0.
  more = nonnegative_minimum(square, dots + times(square, least), there)
  violated = (there & (dots < 0)).any()
  weights = jnp.where(violated, least + more, 0)
  return jax.tree.map(lambda g, p: g + jnp.tensordot(weights, p, 1), grads, past)
