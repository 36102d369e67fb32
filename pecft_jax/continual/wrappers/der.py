"""DER: dark experience replay (Buzzega et al., 2020, arXiv:2004.07211), without stored labels."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import buffer as buffers
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
    '': lambda inner: der(inner, size=8),
    'zero': lambda inner: der(inner, size=8, alpha=0),
  },
)
@recorded
def der(inner: ContinualMethod, *, size: int = 500, alpha: float = 0.3) -> ContinualMethod:
  """Replays stored examples with the logits that they had when they were stored, without labels.

  Adds alpha x MSE(logits(x'), z') on one draw from a reservoir; the MSE is over
  all C logits, as in the authors' code. `derpp` replays labels, too. Defaults
  are mammoth's for split CIFAR-100.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept.
    alpha: weight of the stored logits.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a size below 1, or a negative weight.

  >>> from pecft_jax.continual import der, finetune
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> der(finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)), size=100).name
  'der(finetune)'
  """
  at_least(0, alpha=alpha)
  need_classes(inner.capacity.problem, 'der')
  item = {
    'x': jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype),
    'z': jax.ShapeDtypeStruct((inner.capacity.classes,), jnp.float32),
  }
  jax.eval_shape(lambda: buffers.empty(size, item))  # Raises for a size below 1.

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, 'buffer': buffers.empty(size, item)}

  def loss(params, memory, env, batch, key):
    k_inner, k_draw, k_forward = jax.random.split(key, 3)
    value, out = inner.loss(params, memory['inner'], env, batch, k_inner)
    old, valid = buffers.sample(memory['buffer'], batch.y.shape[0], k_draw)
    logits = inner.forward(params, memory['inner'], env, old['x'], k_forward).logits
    return value + alpha * mean_of_valid(jnp.square(logits - old['z']).mean(-1), valid), out

  def observe(params, memory, env, batch, out, update, key):
    k_inner, k_offer = jax.random.split(key)
    items = {'x': raw(batch.x), 'z': out.logits.astype(jnp.float32)}
    kept = buffers.offer(memory['buffer'], items, batch.valid, k_offer)
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, k_inner)
    return params, {**memory, 'inner': new, 'buffer': kept}

  return wrap(inner, 'der', init=init, loss=loss, observe=observe)
