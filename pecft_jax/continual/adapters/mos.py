"""MOS: model surgery for class-incremental learning (Sun et al., 2025, arXiv:2412.09441).

Each task trains an adapter that is merged with those before it after every update. A prediction
chooses the adapter of each example by the classes that it answers with, in a few rounds.
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.adapters.slices import with_slot
from pecft_jax.continual.core import from_forward, model, new_head, only, unit
from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.continual.memory.alignment import alignment
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.compose import take
from pecft_jax.peft.halves import combine as together
from pecft_jax.peft.halves import split_kept
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Delta,
  Head,
  Output,
  Parts,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return adaptformer(width=16)


def _default_recipe() -> Recipe:
  return sgd(0.005, weight_decay=5e-4)


@about(
  'method',
  'adapters',
  Paper('MOS: model surgery for pre-trained model-based class-incremental learning', '2412.09441'),
  needs=('classes',),
  carries='a delta per task, a Gaussian D x D and a sum of features per class',
  passes='T',
  tiny=lambda backbone, capacity: mos(
    backbone, capacity, peft=lora('.', rank=2), epochs=2, samples=6
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear, 'recipe': _default_recipe})
def mos(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  merged: float = 0.1,
  contrast: float = 0.1,
  temperature: float = 0.8,
  rounds: int = 4,
  epochs: int = 30,
  samples: int = 240,
  recipe: Recipe | None = None,
  shrinkage: float = 1e-4,
  diagonal: bool = False,
) -> ContinualMethod:
  """Trains an adapter per task, merged with the past ones, and refines which one answers.

  A task starts from the adapter of the task before. After each update the adapter is (1 - merged) x
  its own + merged x the mean of all past ones. Beside the softmax over the task's own classes there
  is `contrast` x a loss that keeps features and the means of old classes apart: with rows M of
  both, the cross-entropy of M M^T / temperature against the identity. At the end of a task the head
  is aligned on Gaussians, as in `aligned`.

  At test, the nearest class mean under the first adapter names a task. Then the head answers under
  that task's adapter, and its answer names a task again, until it stays or after `rounds` rounds.
  The result is softmax(head) + softmax(T cosines) for T tasks seen, both over all classes seen.

  The authors' code merges the adapter in every forward pass as well, once for each block, and at
  test changes the adapters of past tasks in this way; here they stay as they were learned.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains; `adaptformer(width=16)` by default.
    head: what classifies features, and is aligned; `linear()` by default.
    merged: share of the mean of past adapters after each update, in [0, 1].
    contrast: weight of the contrastive loss.
    temperature: of the contrastive loss.
    rounds: answers of the head for an example, at most; at least 1.
    epochs: of the alignment.
    samples: per class and epoch of the alignment.
    recipe: of the alignment; SGD with momentum, rate 0.005 by default.
    shrinkage: added to variances.
    diagonal: keep variances alone: C D numbers instead of C D^2.

  Raises:
    ValueError: if the transform finds no site; for a share outside [0, 1], a negative weight, a
      temperature that is not positive, no rounds, and as `aligned`; for a problem without classes.

  >>> from pecft_jax.continual import mos
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = mos(model.backbone, Capacity(tasks=5, classes=10))
  >>> [phase.name for phase in method.phases]
  ['gaussians', 'align']
  """
  need_classes(capacity.problem, 'mos')
  if not 0 <= merged <= 1:
    raise ValueError(f'expected merged in [0, 1], got {merged}')
  at_least(0, contrast=contrast)
  above(0, temperature=temperature)
  at_least(1, rounds=rounds)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width

  def init(key, frozen):
    delta = net.init(key, frozen)
    memory = {
      'bank': jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), delta),
      'gaussians': normals.no_gaussians(classes, width, diagonal=diagonal),
      'sums': ClassSums(jnp.zeros(classes), jnp.zeros((classes, width))),
      'owner': jnp.full(classes, -1, jnp.int32),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    del key
    own = env.task.classes
    counts, sums = memory['sums']
    return params, {
      **memory,
      'gaussians': normals.without(memory['gaussians'], own),
      'sums': ClassSums(jnp.where(own, 0, counts), jnp.where(own[:, None], 0, sums)),
      'owner': jnp.where(own, env.task.index, memory['owner']),
    }

  def adapter(params, memory, env, i):
    """The adapter of task i; the current one is in training, or as the bank has it."""
    past = take(memory['bank'], i)
    return jax.tree.map(
      lambda old, now: jnp.where(i == env.task.index, now, old), past, params['delta']
    )

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def loss(params, memory, env, batch, key):
    value, out = plain.loss(params, memory, env, batch, key)
    old = env.task.past & ~env.task.classes
    means = memory['gaussians'].mean
    apart = contrastive(out.features, batch.valid, means, old, temperature)
    return value + contrast * apart, out

  def observe(params, memory, env, batch, out, update, key):
    del batch, out, update, key
    delta = pulled(params['delta'], memory['bank'], env.task.index, merged)
    return {**params, 'delta': delta}, memory

  def consolidate(params, memory, env, batch):
    features = net.features(env.frozen, params['delta'], batch.x)
    first = jax.lax.cond(
      env.task.index == 0,
      lambda: features,
      lambda: net.features(env.frozen, take(memory['bank'], 0), batch.x),
    )
    sums, counts = class_sums(first, batch.y, batch.valid, classes)
    known = memory['sums']
    return {
      **memory,
      'gaussians': normals.with_rows(
        memory['gaussians'], features, batch.y, batch.valid, env.task.classes
      ),
      'sums': ClassSums(known.counts + counts, known.sums + sums),
    }

  def end_task(params, memory, env):
    return params, {**memory, 'bank': with_slot(memory['bank'], params['delta'], env.task.index)}

  def combine(params, memory, env, features, x):
    del x
    seen, owner = env.task.seen, memory['owner']
    rows = jnp.arange(features.shape[1])
    # The direction of a sum is the direction of the mean.
    nearest = only(seen, unit(features[0]) @ unit(memory['sums'].sums).T)
    answer = nearest
    for _ in range(rounds):
      # An answer that names the same task again stays as it is.
      chosen = features[owner[answer.argmax(-1)], rows]
      answer = only(seen, head.logits(params['head'], chosen))
    shares = jax.nn.softmax(answer) + jax.nn.softmax(nearest * (env.task.index + 1))
    return only(seen, shares)

  plain = from_forward(
    'mos',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    observe=observe,
    consolidate=consolidate,
    phases=alignment(
      head,
      tasks,
      epochs=epochs,
      samples=samples,
      recipe=_default_recipe() if recipe is None else recipe,
      shrinkage=shrinkage,
    ),
    end_task=end_task,
    predict=Parts(
      weights=adapter,
      part=net.features,
      combine=combine,
      slots=tasks,
      used=lambda env: env.task.index + 1,
    ),
    passes=float,
    transforms={'delta': peft},
    head=head,
  )
  return plain._replace(loss=loss)


def contrastive(
  features: Array, valid: Array, means: Array, old: Array, temperature: float
) -> Array:
  """The cross-entropy of similarities among features and old means against the identity: []

  Args:
    features: [B, D]
    valid: [B] bool
    means: [C, D], of classes.
    old: [C] bool, those that take part.
    temperature: of dot products.
  """
  rows = jnp.concatenate([means, features.astype(jnp.float32)])
  there = jnp.concatenate([old, valid])
  alike = rows @ rows.T / temperature
  shares = jax.nn.log_softmax(jnp.where(there, alike, -1e9))
  return -jnp.where(there, jnp.diagonal(shares), 0).sum() / jnp.maximum(there.sum(), 1)


def pulled(delta: Delta, bank: Delta, index: Array, share: float) -> Delta:
  """A delta with a share of the mean of the past ones in the place of its own; the first stays.

  Args:
    delta: of the current task; what is `Kept` stays.
    bank: [T, ...], those of past tasks, and zeros.
    index: [] int32, the number of past tasks.
    share: of the mean.
  """
  past = share * (index > 0)

  def one(now: Array, slots: Array) -> Array:
    there = (jnp.arange(len(slots)) < index).reshape(-1, *[1] * now.ndim)
    mean = jnp.where(there, slots, 0).sum(0) / jnp.maximum(index, 1)
    return ((1 - past) * now + past * mean).astype(now.dtype)

  (trained, kept), (slots, _) = split_kept(delta), split_kept(bank)
  return together(jax.tree.map(one, trained, slots), kept)
