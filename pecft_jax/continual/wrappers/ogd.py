"""OGD: orthogonal gradient descent (Farajtabar et al., 2020, arXiv:1910.07104)."""

import jax
import jax.numpy as jnp
import optax

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import held_of, raw
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.wrappers.importance import need_held
from pecft_jax.continual.wrappers.wrap import consolidated, observed, wrap
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, ContinualMethod, Once, Params


@about(
  'wrapper',
  'wrappers',
  Paper('Orthogonal gradient descent for continual learning', '1910.07104'),
  needs=('classes',),
  carries='N vectors, each as large as the parameters',
  tiny=lambda inner: ogd(inner, size=20),
)
@recorded
def ogd(inner: ContinualMethod, *, size: int = 500) -> ContinualMethod:
  """Moves parameters at right angles to the gradients of the logits of past examples.

  After each task the gradient of the logit of the true class is taken at n of its
  examples (OGD-GTL of the paper), and made orthonormal to all before it by
  Gram-Schmidt. From the second task on each update loses its part in the span of
  these vectors, so that the logits of those examples stay as they are, to first order. What
  is projected is the update itself: under plain SGD that is the paper's projected
  gradient, and Adam's rates per parameter do not turn it back. Examples are kept only until
  their gradients are taken. Parameters that the inner method resets at each task (`renewed`)
  are left out.

  Args:
    inner: any method that trains on every task.
    size: N, vectors in all; n = N // T of each task. The paper has 200 a task.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for less than one vector of each
      task, or a problem without classes; at init, if all parameters are reset at each task.

  >>> from pecft_jax.continual import finetune, ogd
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> ogd(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))).name
  'ogd(finetune)'
  """
  problem, tasks = inner.capacity.problem, inner.capacity.tasks
  need_classes(problem, 'ogd')
  if size < tasks:
    raise ValueError(f'ogd needs a vector of each of {tasks} tasks, got size={size}')
  rows = size // tasks
  item = {'x': jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype), 'y': problem.target}
  held = lambda params: held_of(inner, params)

  def init(key, frozen):
    k_inner, k_offer = jax.random.split(key)
    params, memory = inner.init(k_inner, frozen)
    some = need_held('ogd', inner, params)
    bank = jax.tree.map(lambda a: jnp.zeros((tasks, rows, *a.shape)), some)
    # The pass that samples has no key of its own: it makes them from this one.
    data = jax.random.key_data(k_offer)
    return params, {
      'inner': memory, 'bank': bank, 'sample': buffers.empty(rows, item), 'key': data
    }  # fmt: skip

  def consolidate(params, memory, env, batch):
    sample = memory['sample']
    key = jax.random.fold_in(jax.random.wrap_key_data(memory['key']), env.task.index)
    key = jax.random.fold_in(key, sample.count)
    kept = buffers.offer(sample, {'x': raw(batch.x), 'y': batch.y}, batch.valid, key)
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'sample': kept}

  def basis(params, memory, env, key):
    """Adds the directions of this task's sample to the bank."""
    del key
    kept = split_kept(params)[1]

    def logit(part, x, y):
      whole = {name: combine(part[name], kept[name]) for name in part}
      return inner.forward({**params, **whole}, memory['inner'], env, x[None], None).logits[0, y]

    def add(bank, each):
      row, x, y = each
      new = direction(bank, jax.grad(logit)(held(params), x, y))
      new = jax.tree.map(lambda a: jnp.where(row < memory['sample'].count, a, 0), new)
      return jax.tree.map(lambda a, b: a.at[env.task.index, row].set(b), bank, new), None

    items = memory['sample'].items
    bank, _ = jax.lax.scan(add, memory['bank'], (jnp.arange(rows), items['x'], items['y']))
    nothing = jax.tree.map(jnp.zeros_like, memory['sample'])
    return params, {**memory, 'bank': bank, 'sample': nothing}

  def observe(params, memory, env, batch, out, update, key):
    now = held(params)
    change = jax.tree.map(jnp.subtract, now, held(update.before))
    # The bank is empty in the first task, and nothing is computed for it.
    extra = jax.lax.cond(
      env.task.index > 0,
      lambda change: within(memory['bank'], change),
      lambda change: jax.tree.map(jnp.zeros_like, change),
      change,
    )
    kept = split_kept(params)[1]
    moved = jax.tree.map(jnp.subtract, now, extra)
    params = {**params, **{name: combine(moved[name], kept[name]) for name in moved}}
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, key)
    return params, {**memory, 'inner': new}

  return wrap(
    inner,
    'ogd',
    init=init,
    consolidate=consolidate,
    observe=observe,
    phases=(Once('directions', basis, after='consolidate'),),
  )


def within(bank: Params, vector: Params) -> Params:
  """The part of a vector in the span of orthonormal ones.

  Args:
    bank: leaves [T, n, ...]; vectors of zeros do not count.
    vector: leaves [...].
  """
  flat = lambda a, v: a.reshape(-1, v.size)
  share = lambda a, v: jnp.matmul(flat(a, v), v.ravel(), precision='highest')
  weights = sum(jax.tree.leaves(jax.tree.map(share, bank, vector)))
  back = lambda a, v: jnp.matmul(weights, flat(a, v), precision='highest').reshape(v.shape)
  return jax.tree.map(back, bank, vector)


def direction(bank: Params, vector: Params) -> Params:
  """What a vector adds to the span of orthonormal ones: of length 1; zeros if nothing."""
  norm = lambda v: jnp.asarray(optax.tree.norm(v))
  rest = vector
  for _ in range(2):  # Once more takes away what rounding left of the first time.
    rest = jax.tree.map(jnp.subtract, rest, within(bank, rest))
  long: Array = norm(rest) > 1e-4 * norm(vector)
  scale = jnp.where(long, 1 / jnp.where(long, norm(rest), 1), 0)
  return jax.tree.map(lambda a: a * scale, rest)
