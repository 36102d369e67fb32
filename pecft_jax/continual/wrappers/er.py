"""ER: experience replay (Chaudhry et al., 2019, arXiv:1902.10486)."""

import jax

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import buffer as buffers
from pecft_jax.continual.memory.views import ReplayViews, viewed
from pecft_jax.continual.wrappers.wrap import observed, wrap
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


@about(
  'wrapper',
  'wrappers',
  Paper('On tiny episodic memories in continual learning', '1902.10486'),
  needs=('stored examples',),
  carries='a buffer of examples',
  tiny={
    '': lambda inner: er(inner, size=8),
    'zero': lambda inner: er(inner, size=8, strength=0),
  },
)
@recorded
def er(
  inner: ContinualMethod,
  *,
  size: int = 500,
  strength: float = 1.0,
  distinct: bool = False,
  views: ReplayViews | None = None,
) -> ContinualMethod:
  """Trains on stored examples beside the new ones: CE(batch) + strength x CE(replayed batch).

  Replayed examples are classified among all classes seen. The buffer is filled by reservoir
  sampling, and keeps inputs as training saw them: that works with any augmentation and any kind of
  input, but replays one view of an image again and again. With `views` it keeps the images
  themselves, and each update draws new views of new and stored images on the device, as mammoth
  does on the host: leave `Training.augment` out then.

  Args:
    inner: any method that trains on every task.
    size: N, examples kept.
    strength: weight of the replayed batch.
    distinct: draw no example twice into a batch, as mammoth does; with replacement otherwise.
    views: `(images, key) -> images`, such as `shifts_and_flips(4)`; None replays what was stored.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for a size below 1, or a negative strength.

  >>> from pecft_jax.continual import er, finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = er(finetune(model.backbone, Capacity(tasks=5, classes=10)), size=100)
  >>> method.name
  'er(finetune)'
  """
  at_least(0, strength=strength)
  example = jax.ShapeDtypeStruct(inner.inputs.shape, inner.inputs.dtype)
  problem = inner.capacity.problem
  item = {'x': example, 'y': problem.target}
  jax.eval_shape(lambda: buffers.empty(size, item))  # Raises for a size below 1.

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, 'buffer': buffers.empty(size, item)}

  def loss(params, memory, env, batch, key):
    k_inner, k_draw, k_forward = jax.random.split(key, 3)
    k_new, k_old = jax.random.split(jax.random.fold_in(key, 3))
    batch = batch._replace(x=viewed(views, batch.x, k_new))
    value, out = inner.loss(params, memory['inner'], env, batch, k_inner)
    old, valid = buffers.sample(memory['buffer'], batch.y.shape[0], k_draw, distinct=distinct)
    x = viewed(views, old['x'], k_old)
    again = inner.forward(params, memory['inner'], env, x, k_forward)
    replayed = mean_of_valid(problem.losses(again.logits, old['y'], env.task.seen), valid)
    return value + strength * replayed, out

  def observe(params, memory, env, batch, out, update, key):
    k_inner, k_offer = jax.random.split(key)
    items = {'x': raw(batch.x), 'y': batch.y}
    kept = buffers.offer(memory['buffer'], items, batch.valid, k_offer)
    params, new = observed(inner, params, memory['inner'], env, batch, out, update, k_inner)
    return params, {**memory, 'inner': new, 'buffer': kept}

  return wrap(inner, 'er', init=init, loss=loss, observe=observe)
