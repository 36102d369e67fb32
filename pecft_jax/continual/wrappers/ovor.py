"""OVOR: virtual outlier regularisation of a head (Huang et al., 2024, arXiv:2402.04129)."""

import math

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.outliers import outliers as far_points
from pecft_jax.continual.wrappers.wrap import check_forgets, consolidated, wrap
from pecft_jax.problems import cross_entropy, need_classes
from pecft_jax.recipes import Recipe, adam
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, ContinualMethod, Fit, Once


def _default_recipe() -> Recipe:
  return adam(1e-3)


@about(
  'wrapper',
  'wrappers',
  Paper(
    'OVOR: OnePrompt with virtual outlier regularization for rehearsal-free class-incremental '
    'learning',
    '2402.04129',
  ),
  needs=('classes',),
  carries='nothing; during a task, features of some examples and outliers',
  switches=(
    Switch(
      'at_origin',
      True,
      'outliers are noise around zero, as the points that the noise belongs to are never added',
      'jpmorganchase/ovor',
    ),
  ),
  tiny=lambda inner: ovor(
    inner, epochs=1, sample=6, outliers=4, boundary=2, draws=3, neighbour=2, batch=3
  ),
)
@recorded(defaults={'recipe': _default_recipe})
def ovor(
  inner: ContinualMethod,
  *,
  epochs: int = 10,
  strength: float = 0.1,
  inside: float = -15.0,
  outside: float = -3.0,
  outliers: int = 400,
  boundary: int = 50,
  draws: int = 600,
  spread: float = 0.1,
  neighbour: int = 50,
  sample: int = 2048,
  batch: int = 128,
  recipe: Recipe | None = None,
  at_origin: bool = False,
) -> ContinualMethod:
  """Tunes the head of a method, after each task, to give virtual outliers a high energy.

  Outliers are noise around those features of the task that lie most apart. The energy of a feature
  is -logsumexp of its logits among the task's own classes. With h the Huber function (threshold
  1), the loss is the cross-entropy of the task's features among its classes, plus strength x
  (the mean of h(relu(energy - inside)) over features + that of h(relu(outside - energy)) over
  outliers). So a head keeps its logits low for what is of no class that it was trained on.

  OVOR is it around OnePrompt, which is masked fine-tuning of prefixes in the first five blocks:
  `ovor(masked_finetune(..., peft=prefix('block_[0-4]/attn$', 20)))`.

  Departures from the authors' code: features are of images without views, and features and
  outliers are found once, there in every epoch; their number is given for a task, there for a
  class, 40; candidates are compared by direction as the features are, there by themselves.

  Args:
    inner: any method that trains on every task and has a head.
    epochs: over the features kept.
    strength: weight of the two energy terms.
    inside: energy that features shall be below.
    outside: energy that outliers shall be above.
    outliers: how many.
    boundary: features that there is noise around.
    draws: of the noise around each.
    spread: standard deviation of the noise.
    neighbour: k of the distance to the k-th nearest neighbour, by which points lie apart.
    sample: features of a task that are kept, at most; a uniform sample of larger tasks.
    batch: features in an update.
    recipe: of the head; Adam with rate 1e-3 by default.
    at_origin: noise around zero, as in the authors' code. For comparison with it only.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for sizes below 1, a negative strength, a
      spread that is not positive, more outliers than draws, or a method without a head.

  >>> from pecft_jax.continual import masked_finetune, ovor
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = ovor(masked_finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'ovor(masked_finetune)'
  """
  need_classes(inner.capacity.problem, 'ovor')
  check_forgets(inner, 'ovor')
  at_least(1, epochs=epochs, outliers=outliers, boundary=boundary, draws=draws)
  at_least(1, neighbour=neighbour, sample=sample, batch=batch)
  at_least(0, strength=strength)
  above(0, spread=spread)
  if inner.head is None:
    raise ValueError(f'ovor needs a method with a head on its features, got {inner.name}')
  if outliers > min(boundary, sample) * draws:
    raise ValueError(
      f'ovor: {outliers} outliers are more than {min(boundary, sample)} x {draws} draws'
    )
  classify, width = inner.head.logits, inner.backbone.width
  updates = math.ceil(sample / batch)  # In an epoch.
  number = jax.ShapeDtypeStruct((), jnp.int32)
  item = (jax.ShapeDtypeStruct((width,), jnp.float32), number)

  def nothing():
    return {
      'sample': sampling.empty(sample, item),
      'outliers': jnp.zeros((outliers, width)),
      'there': jnp.zeros(outliers, bool),
    }

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    return params, {'inner': memory, **nothing()}

  def consolidate(params, memory, env, batch):
    out = inner.forward(params, memory['inner'], env, batch.x, None)
    rows = out.features.astype(jnp.float32), batch.y
    valid = batch.valid & env.task.classes[batch.y]
    kept = sampling.offer(memory['sample'], rows, valid, batch.index)
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'sample': kept}

  def find(params, memory, env, key):
    kept = memory['sample']
    found, there = far_points(
      kept.items[0], kept.filled, outliers, key, boundary=boundary, draws=draws, spread=spread,
      neighbour=neighbour, at_origin=at_origin,
    )  # fmt: skip
    return params, {**memory, 'outliers': found, 'there': there}

  def loss(params, memory, env, _, key):
    k_inside, k_outside = jax.random.split(key)
    kept, own = memory['sample'], env.task.classes
    rows = _some(k_inside, kept.filled, batch)
    h, y = jax.tree.map(lambda a: a[rows], kept.items)
    far = memory['outliers'][_some(k_outside, memory['there'], max(outliers // updates, 1))]
    logits = classify(params['head'], h)
    high = energy(logits, own) - inside
    low = outside - energy(classify(params['head'], far), own)
    hinges = _huber(jax.nn.relu(high)).mean() + _huber(jax.nn.relu(low)).mean()
    return cross_entropy(logits, y, own).mean() + strength * hinges

  def forget(params, memory, env, key):
    return params, {**memory, **nothing()}

  reject = Fit(
    'reject',
    loss,
    after='outliers',
    recipe=_default_recipe() if recipe is None else recipe,
    trains=('head',),
    steps=lambda task: epochs * updates,
  )
  phases = (
    Once('outliers', find, after='consolidate'),
    reject,
    Once('without outliers', forget, after='reject'),
  )
  return wrap(inner, 'ovor', init=init, consolidate=consolidate, phases=phases)


def energy(logits: Array, own: Array) -> Array:
  """-logsumexp over some classes [C] bool: [B, C] -> [B]."""
  return -jax.nn.logsumexp(logits, axis=-1, where=own)


def _some(key: jax.Array, filled: Array, count: int) -> Array:
  """Numbers [count] of filled rows, drawn evenly with replacement."""
  return jax.random.categorical(key, jnp.where(filled, 0.0, -jnp.inf), shape=(count,))


def _huber(x: Array) -> Array:
  return jnp.where(x < 1, 0.5 * x * x, x - 0.5)
