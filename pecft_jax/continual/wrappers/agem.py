"""A-GEM: averaged gradient episodic memory (Chaudhry et al., 2019, arXiv:1812.00420)."""

import jax
import jax.numpy as jnp
import optax

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.wrappers.wrap import consolidated, wrap
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod, Params


@about(
  'wrapper',
  'wrappers',
  Paper('Efficient lifelong learning with A-GEM', '1812.00420'),
  needs=('stored examples',),
  carries='a buffer of examples',
  tiny=lambda inner: agem(inner, size=8),
)
@recorded
def agem(inner: ContinualMethod, *, size: int = 500) -> ContinualMethod:
  """Projects each gradient so that it does not raise the loss on stored examples.

  Where g . r < 0, with r the gradient of a stored batch over all classes seen,
  g becomes g - (g . r / r . r) r (eq. 11). The buffer takes a task's examples
  after the task was trained, by reservoir sampling, so the first task is
  trained without projection.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept.

  Raises:
    ValueError: if wrapping `inner` has no meaning, or for a size below 1.

  >>> from pecft_jax.continual import agem, finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = agem(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'agem(finetune)'
  """
  problem = inner.capacity.problem
  example = jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype)
  item = {'x': example, 'y': problem.target}
  jax.eval_shape(lambda: buffers.empty(size, item))  # Raises for a size below 1.

  def init(key, frozen):
    k_inner, k_offer = jax.random.split(key)
    params, memory = inner.init(k_inner, frozen)
    # The pass that fills the buffer has no key of its own: it makes them from this one.
    data = jax.random.key_data(k_offer)
    return params, {'inner': memory, 'buffer': buffers.empty(size, item), 'key': data}

  def project(grads, params, memory, env, batch, key):
    k_inner, k_draw, k_forward = jax.random.split(key, 3)
    if inner.project is not None:
      grads = inner.project(grads, params, memory['inner'], env, batch, k_inner)
    active, kept = split_kept(params)

    def replayed(part):
      stored, valid = buffers.sample(memory['buffer'], batch.y.shape[0], k_draw)
      whole = combine(part, kept)
      out = inner.forward(whole, memory['inner'], env, stored['x'], k_forward)
      losses = problem.losses(out.logits, stored['y'], env.task.seen)
      return mean_of_valid(losses, valid)

    # In the first task the buffer is empty, and no gradient is computed for it.
    return jax.lax.cond(
      env.task.index > 0, lambda g: projected(g, jax.grad(replayed)(active)), lambda g: g, grads
    )

  def consolidate(params, memory, env, batch):
    buffer = memory['buffer']
    key = jax.random.fold_in(jax.random.wrap_key_data(memory['key']), buffer.count)
    kept = buffers.offer(buffer, {'x': raw(batch.x), 'y': batch.y}, batch.valid, key)
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'buffer': kept}

  return wrap(inner, 'agem', init=init, project=project, consolidate=consolidate)


def projected(grads: Params, reference: Params) -> Params:
  """The gradient without its component against a reference gradient (eq. 11)."""
  dot = jnp.asarray(optax.tree.vdot(grads, reference))
  square = jnp.asarray(optax.tree.vdot(reference, reference))
  share = jnp.where(dot < 0, dot / jnp.maximum(square, 1e-12), 0.0)
  return jax.tree.map(lambda g, r: g - share * r, grads, reference)
