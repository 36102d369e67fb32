"""DER++: dark experience replay (Buzzega et al., 2020, arXiv:2004.07211)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.memory.views import ReplayViews, viewed
from pecft_jax.continual.wrappers.wrap import observed, wrap
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('Dark experience for general continual learning: a strong, simple baseline', '2004.07211'),
  needs=('classes', 'stored examples'),
  carries='a buffer of examples with logits',
  tiny={
    '': lambda inner: derpp(inner, size=8),
    'zero': lambda inner: derpp(inner, size=8, alpha=0, beta=0),
  },
)
@recorded
def derpp(
  inner: ContinualMethod,
  *,
  size: int = 500,
  alpha: float = 0.3,
  beta: float = 0.5,
  distinct: bool = False,
  views: ReplayViews | None = None,
) -> ContinualMethod:
  """Replays stored examples with the logits that they had when they were stored.

  Adds alpha x MSE(logits(x'), z') + beta x CE(x'', y'') on two independent
  draws from one reservoir; the MSE is over all C logits, as in the authors'
  code. `der` is without labels. Defaults are mammoth's for split CIFAR-100. What is stored and
  replayed is as in `er`; logits are those of the view that training saw.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept.
    alpha: weight of the stored logits.
    beta: weight of the stored labels.
    distinct: as in `er`, for each of the two draws.
    views: as in `er`.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a size below 1, or negative weights.

  >>> from pecft_jax.continual import derpp, finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = derpp(finetune(model.backbone, Capacity(tasks=5, classes=10)), size=100)
  >>> method.name
  'derpp(finetune)'
  """
  at_least(0, alpha=alpha, beta=beta)
  problem = inner.capacity.problem
  need_classes(problem, 'derpp')
  example = jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype)
  item = {
    'x': example,
    'y': problem.target,
    'z': jax.ShapeDtypeStruct((inner.capacity.classes,), jnp.float32),
  }
  jax.eval_shape(lambda: buffers.empty(size, item))  # Raises for a size below 1.

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, 'buffer': buffers.empty(size, item)}

  def loss(params, memory, env, batch, key):
    k_inner, k_dark, k_plain, k_forward = jax.random.split(key, 4)
    k_new, k_old = jax.random.split(jax.random.fold_in(key, 4))
    batch = batch._replace(x=viewed(views, batch.x, k_new))
    value, out = inner.loss(params, memory['inner'], env, batch, k_inner)
    rows = batch.y.shape[0]
    dark, valid = buffers.sample(memory['buffer'], rows, k_dark, distinct=distinct)
    plain, _ = buffers.sample(memory['buffer'], rows, k_plain, distinct=distinct)
    # One pass over both draws keeps the matrices large.
    x = viewed(views, jnp.concatenate([dark['x'], plain['x']]), k_old)
    logits = inner.forward(params, memory['inner'], env, x, k_forward).logits
    squares = jnp.square(logits[:rows] - dark['z']).mean(-1)
    entropies = problem.losses(logits[rows:], plain['y'], env.task.seen)
    value += alpha * mean_of_valid(squares, valid) + beta * mean_of_valid(entropies, valid)
    return value, out

  def observe(params, memory, env, batch, out, update, key):
    k_inner, k_offer = jax.random.split(key)
    items = {'x': raw(batch.x), 'y': batch.y, 'z': out.logits.astype(jnp.float32)}
    kept = buffers.offer(memory['buffer'], items, batch.valid, k_offer)
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, k_inner)
    return params, {**memory, 'inner': new, 'buffer': kept}

  return wrap(inner, 'derpp', init=init, loss=loss, observe=observe)
