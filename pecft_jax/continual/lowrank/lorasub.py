"""LoRA-Sub-DRS: LoRA subtraction for drift-resistant space (Liu and Chang, 2025,
arXiv:2503.18985).
"""

import math

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  from_forward,
  mean_of_valid,
  model,
  new_head,
  only,
  unit,
)
from pecft_jax.continual.lowrank.inflora import second_moments
from pecft_jax.continual.lowrank.sums import added, need_lora, products
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Gather,
  Head,
  Once,
  Output,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper('LoRA subtraction for drift-resistant space in exemplar-free continual learning',
        '2503.18985'),
  needs=('LoRA factors', 'classes'),
  carries='the sum of past products and a projector d_in x d_in per site, a sum of features per '
  'class',
  tiny={
    '': lambda backbone, capacity: lorasub(
      backbone, capacity, peft=lora('.', rank=2, alpha=2), threshold=0.6
    ),
    'published': lambda backbone, capacity: lorasub(
      backbone, capacity, peft=lora('.', rank=2, alpha=2), divided=True, outputs=True
    ),
  },
  switches=(
    Switch(
      'divided',
      True,
      'the projector is divided by its Frobenius norm, so that steps are shorter by the square '
      'root of its rank from the second task on',
      'RL-MIND/LibContinual',
    ),
    Switch(
      'outputs',
      True,
      'the projector of the inputs of a site acts on its outputs, too, in the updates of B',
      'RL-MIND/LibContinual',
    ),
  ),
)  # fmt: skip
@recorded(defaults={'peft': _default_peft, 'head': linear})
def lorasub(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  threshold: float = 0.99,
  strength: float = 0.05,
  margin: float = 1.0,
  divided: bool = False,
  outputs: bool = False,
) -> ContinualMethod:
  """Learns each task in a new LoRA, within what its inputs are to the model less all past ones.

  From the second task on, a pass over the new data through W - sum_{i<t} A_i B_i gives the second
  moments of the inputs of every site. P is the projector on their leading eigenvectors, the fewest
  that hold a share `threshold` of the trace: the drift-resistant space. Each update of A becomes P
  times it; what is projected is the update itself, after Adam. When a task ends, A_t B_t is added
  to the weights.

  The loss is the cross-entropy over the task's own classes, and `strength` x a triplet loss on
  features of length 1: of the farthest example of the same class in the batch, and the nearest of
  another class there or among the means of past classes. A pass after training gives the mean
  feature of each class, and the nearest one by cosine predicts; the head serves training alone. The
  means of past classes are not changed later.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on keys and values with rank 10 and scale 1 by default.
    head: what is trained to classify features; `linear()` by default.
    threshold: in (0, 1].
    strength: of the triplet loss.
    margin: of the triplet loss.
    divided: divide P by its Frobenius norm.
    outputs: project the updates of B as well, at sites that have as many outputs as inputs.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a threshold outside (0,
      1], a negative strength or margin, or a problem without classes.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import lorasub
  >>> from pecft_jax.typing import Capacity
  >>> lorasub(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'lorasub'
  """
  need_classes(capacity.problem, 'lorasub')
  at_least(0, strength=strength, margin=margin)
  if not 0 < threshold <= 1:
    raise ValueError(f'expected a threshold in (0, 1], got {threshold}')
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('LoRA-Sub-DRS', backbone, peft)
  whole = added(shapes)
  changed, current = model(backbone, whole), model(backbone, peft)
  both = model(backbone, chain(past=whole, now=peft))
  squares = lambda: {path: jnp.zeros((each.a.shape[0],) * 2) for path, each in shapes.items()}

  def init(key, frozen):
    delta = current.init(key, frozen)
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, {
      'past': jax.tree.map(jnp.zeros_like, products(peft, delta)),
      'moments': squares(),
      'projector': squares(),
      'means': ClassSums(
        jnp.zeros(capacity.classes), jnp.zeros((capacity.classes, backbone.width))
      ),
    }

  def begin_task(params, memory, env, key):
    return {**params, 'delta': current.init(key, env.frozen)}, memory

  def subtract(params, memory, env, batch):
    del params
    less = jax.tree.map(jnp.negative, memory['past'])
    watch = second_moments(shapes, batch.valid)
    taps = changed.run(env.frozen, less, batch.x, None, watch=watch, rows=None).taps
    moments = {path: memory['moments'][path] + taps[f'linear:{path}'] for path in shapes}
    return {**memory, 'moments': moments}

  def design(params, memory, env, key):
    del env, key
    projector = jax.tree.map(lambda h: leading(h, threshold, divided), memory['moments'])
    return params, {**memory, 'moments': squares(), 'projector': projector}

  def features_of(params, memory, env, x, key=None):
    delta = {'past': jax.lax.stop_gradient(memory['past']), 'now': params['delta']}
    return both.features(env.frozen, delta, x, key)

  def forward(params, memory, env, x, key):
    features = features_of(params, memory, env, x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def loss(params, memory, env, batch, key):
    out = forward(params, memory, env, batch.x, key)
    allowed = env.task.classes if env.among is None else env.task.classes & env.among
    losses = capacity.problem.losses(out.logits, batch.y, allowed) + strength * triplet_losses(
      unit(out.features), batch.y, batch.valid, unit(memory['means'].sums), env.task.past, margin
    )
    return mean_of_valid(losses, batch.valid), out

  def observe(params, memory, env, batch, out, update, key):
    del batch, out, key
    within = lambda now, before: _projected(memory['projector'], now, before, outputs)
    free = lambda now, before: now
    delta = jax.lax.cond(env.task.index > 0, within, free, params['delta'], update.before['delta'])
    return {**params, 'delta': delta}, memory

  def consolidate(params, memory, env, batch):
    features = features_of(params, memory, env, batch.x)
    sums, counts = class_sums(features, batch.y, batch.valid, capacity.classes)
    means = memory['means']
    return {**memory, 'means': ClassSums(means.counts + counts, means.sums + sums)}

  def end_task(params, memory, env):
    del env
    past = jax.tree.map(jnp.add, memory['past'], products(peft, params['delta']))
    # The product now acts through the sum; acting twice would double it.
    params = {**params, 'delta': jax.tree.map(jnp.zeros_like, params['delta'])}
    return params, {**memory, 'past': past}

  def predict(params, memory, env, x):
    features = features_of(params, memory, env, x)
    # The direction of a sum is the direction of the mean.
    return only(env.task.seen, unit(features) @ unit(memory['means'].sums).T)

  return from_forward(
    'lorasub',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    loss=loss,
    predict=predict,
    begin_task=begin_task,
    observe=observe,
    consolidate=consolidate,
    end_task=end_task,
    phases=(
      Gather('subtract', subtract, after='begin', when=_later),
      Once('design', design, after='subtract', when=_later),
    ),
    adapted=lambda params, memory, env: Adapted(whole, memory['past'], None),
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )


def _later(task: int) -> bool:
  """Whether there are past tasks."""
  return task > 0


def leading(moments: Array, share: float, divided: bool) -> Array:
  """The projector on the fewest leading eigenvectors that hold a share of the trace: [d, d].

  Args:
    moments: [d, d], symmetric.
    share: in (0, 1].
    divided: by its Frobenius norm.
  """
  values, vectors = jnp.linalg.eigh((moments + moments.T) / 2)
  values, vectors = jnp.maximum(values[::-1], 0), vectors[:, ::-1]  # The largest first.
  before = jnp.cumsum(values) - values
  used = vectors * (before < share * values.sum())
  found = jnp.matmul(used, used.T, precision='highest')
  return found / jnp.maximum(jnp.linalg.norm(found), 1e-12) if divided else found


def triplet_losses(
  features: Array, labels: Array, valid: Array, means: Array, past: Array, margin: float
) -> Array:
  """max(0, farthest of the same class - nearest of another + margin), of each example: [B]

  Where a batch has one class only, the nearest of another class is `margin` farther away than the
  farthest of the same; means of past classes may be nearer.

  Args:
    features: [B, D] of length 1.
    labels: [B] int32
    valid: [B] bool, the examples that count.
    means: [C, D] of length 1.
    past: [C] bool, the classes whose means are compared with.
    margin: 0 or more.
  """
  same = (labels[:, None] == labels) & valid
  alone = jnp.eye(len(labels), dtype=bool)
  apart = jnp.where(alone, 1e-6, distances(features, features))
  positive = jnp.where(same | alone, apart, 0).max(1)
  others = ~(labels[:, None] == labels) & valid
  negative = jnp.where(others, apart, math.inf).min(1)
  negative = jnp.where(others.any(1), negative, positive + margin)
  foreign = past & (jnp.arange(len(means)) != labels[:, None])
  nearest = jnp.where(foreign, distances(features, means), math.inf).min(1)
  return jnp.maximum(positive - jnp.minimum(negative, nearest) + margin, 0)


def distances(x: Array, y: Array) -> Array:
  """Euclidean distances [B, C] between rows; at least 1e-6, where the gradient is 0."""
  squares = jnp.square(x).sum(-1)[:, None] + jnp.square(y).sum(-1)
  return jnp.sqrt(jnp.maximum(squares - 2 * jnp.matmul(x, y.T, precision='highest'), 1e-12))


def _projected(
  projector: dict[str, Array],
  now: dict[str, LoraDelta],
  before: dict[str, LoraDelta],
  outputs: bool,
) -> dict[str, LoraDelta]:
  """The factors of all sites, with the projector of each on their change."""

  def one(p: Array, now: LoraDelta, before: LoraDelta) -> LoraDelta:
    a = before.a + jnp.matmul(p, now.a - before.a, precision='highest')
    if not outputs or now.b.shape[1] != p.shape[0]:
      return LoraDelta(a, now.b)
    return LoraDelta(a, before.b + jnp.matmul(now.b - before.b, p, precision='highest'))

  return {path: one(projector[path], now[path], before[path]) for path in now}
