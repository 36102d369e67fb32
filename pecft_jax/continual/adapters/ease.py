"""EASE: expandable subspace ensemble (Zhou et al., 2024, arXiv:2403.12030).

Each task trains its own delta on the frozen backbone; its features are a
subspace. Classes are prototypes in all subspaces; those of old classes in a
new subspace, for which no data are left, are synthesised.

A class that comes with several tasks (other domains of it) has prototypes from
data in all subspaces up to the last of them, and all those tasks count as its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  model,
  new_head,
  only,
  raw,
  unit,
)
from pecft_jax.continual.memory.statistics import class_sums
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.compose import take
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
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


class EaseMemory(NamedTuple):
  """State carried for T tasks and C classes."""

  AXES = {
    'counts': ('task', 'class'),
    'own': ('task', 'class'),
    'prototypes': ('task', 'class', 'feature'),
    'sums': ('task', 'class', 'feature'),
  }

  bank: Delta  # [T, ...], the adapter of each task.
  counts: Array  # [T, C], examples of each class in each subspace.
  own: Array  # [T, C] bool, which classes came with which task.
  prototypes: Array  # [T, C, D], means; missing ones are synthesised.
  sums: Array  # [T, C, D]


@about(
  'method',
  'adapters',
  Paper(
    'Expandable subspace ensemble for pre-trained model-based class-incremental learning',
    '2403.12030',
  ),
  needs=('classes', 'trained delta'),
  carries='a delta per task, and prototypes of all classes in the subspaces of all tasks',
  passes='T',
  tiny=lambda backbone, capacity: ease(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': adaptformer, 'head': linear})
def ease(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  alpha: float = 0.1,
) -> ContinualMethod:
  """Trains a delta per task, and classifies by cosine to prototypes over all of them.

  A prediction costs as many forward passes as tasks were seen.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains; `adaptformer()` by default, as in the authors' code.
    head: what is trained on the task's classes, and read by no prediction; `linear()` by default,
      `cosine()` in the authors' code.
    alpha: weight of the subspaces that are not the class's own, shared among
      them; the class's own weigh 1 together.

  Raises:
    ValueError: if the transform has nothing to train, or finds no site; for a problem without
      classes.

  >>> from pecft_jax.continual import ease
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = ease(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'ease'
  """
  need_classes(capacity.problem, 'ease')
  peft = adaptformer() if peft is None else peft
  if not jax.tree.leaves(abstract_delta(backbone, peft)):
    raise ValueError(
      'EASE needs a transform that trains something of the backbone: with a linear probe all '
      'its subspaces would be one; choose an adapter, LoRA, prompts, ...'
    )
  head = linear() if head is None else head
  net = model(backbone, peft)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width

  def init(key, frozen):
    delta = net.init(key, frozen)
    memory = EaseMemory(
      bank=jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), delta),
      counts=jnp.zeros((tasks, classes)),
      own=jnp.zeros((tasks, classes), bool),
      prototypes=jnp.zeros((tasks, classes, width)),
      sums=jnp.zeros((tasks, classes, width)),
    )
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    fresh = {'delta': net.init(key, env.frozen), 'head': new_head(head, key, backbone, capacity)}
    return fresh, memory._replace(own=memory.own.at[env.task.index].set(env.task.classes))

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def subspace(params, memory, env, i):
    """The delta of subspace i; the current one is the last."""
    past = take(memory.bank, i)
    return jax.tree.map(
      lambda old, now: jnp.where(i == env.task.index, now, old), past, params['delta']
    )

  def consolidate(params, memory, env, batch):
    def add(i, carry):
      features = net.features(env.frozen, subspace(params, memory, env, i), batch.x)
      new = class_sums(features, batch.y, batch.valid, classes)
      return jax.tree.map(lambda old, new: old.at[i].add(new), carry, new)

    start = memory.sums, memory.counts
    # A traced bound: compiled once, and costs what is filled.
    sums, counts = jax.lax.fori_loop(0, env.task.index + 1, add, start)
    return memory._replace(sums=sums, counts=counts)

  def end_task(params, memory, env):
    put = lambda bank, new: bank.at[env.task.index].set(new)
    bank = jax.tree.map(put, memory.bank, params['delta'])
    means = memory.sums / jnp.maximum(memory.counts, 1)[..., None]
    prototypes = completed(means, memory.counts > 0, env.task.home)
    return params, memory._replace(bank=bank, prototypes=prototypes)

  def combine(params, memory, env, features, x):
    del params
    others = alpha / jnp.maximum(env.task.index, 1)
    each = 1 / jnp.maximum(memory.own.sum(0), 1)

    def add(i, logits):
      cosine = unit(features[i]) @ unit(memory.prototypes[i]).T
      return logits + cosine * jnp.where(memory.own[i], each, others)

    start = jnp.zeros((raw(x).shape[0], classes))
    logits = jax.lax.fori_loop(0, env.task.index + 1, add, start)
    return only(env.task.seen, logits)

  predict = Parts(
    weights=subspace,
    part=net.features,
    combine=combine,
    slots=tasks,
    used=lambda env: env.task.index + 1,
  )

  return from_forward(
    'ease',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    predict=predict,
    passes=float,
    transforms={'delta': peft},
    head=head,
    renewed=('delta', 'head'),
  )


def completed(means: Array, known: Array, home: Array) -> Array:
  """Fills in the prototypes of classes in subspaces that have none of their data.

  An old class is a mixture of the newer classes that are known in subspace j,
  weighted by the softmax of their cosines to it in its first subspace, where
  all of them are known; the same mixture of their prototypes in subspace j is its prototype there.
  As in the authors' code, mixtures are computed again after each task, from more classes each time.

  Args:
    means: [T, C, D], class means, where there are data.
    known: [T, C] bool, where that is.
    home: [C] int32, the first subspace of each class; -1 for classes not seen yet.

  Returns:
    [T, C, D]; zeros for classes and subspaces not reached yet.
  """
  tasks, classes, _ = means.shape

  def compare(i, cosine):
    here = unit(means[i])
    return jnp.where(home[:, None] == i, jnp.matmul(here, here.T, precision='highest'), cosine)

  cosine = jax.lax.fori_loop(0, tasks, compare, jnp.zeros((classes, classes)))

  def fill(subspace):
    mean, there = subspace  # [C, D], [C]
    weights = jax.nn.softmax(jnp.where(there, cosine, -1e9), axis=-1)
    mixed = jnp.matmul(weights, mean, precision='highest')
    lacking = ~there & known.any(0) & there.any()
    return jnp.where(lacking[:, None], mixed, mean)

  return jax.lax.map(fill, (means, known))
