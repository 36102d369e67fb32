"""TUNA: task-specific and universal adapters (Wang et al., 2025, arXiv:2508.08165)."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.adapters.slices import is_adapter, need_adapters, with_slot
from pecft_jax.continual.core import from_forward, model, new_head, only
from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.continual.memory.alignment import alignment
from pecft_jax.heads import cosine
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, adaptformer
from pecft_jax.peft.compose import take
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


def _default_head() -> Head:
  return cosine(scale=20.0, learned=False)


def _default_recipe() -> Recipe:
  return sgd(0.005, weight_decay=5e-4)


@about(
  'method',
  'adapters',
  Paper(
    'Integrating task-specific and universal adapters for pre-trained model-based '
    'class-incremental learning',
    '2508.08165',
  ),
  needs=('adapters', 'classes'),
  carries='an adapter per task, and a Gaussian D x D per class',
  passes='T + 1',
  tiny=lambda backbone, capacity: tuna(
    backbone, capacity, peft=adaptformer(width=3), epochs=2, samples=6
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': _default_head, 'recipe': _default_recipe})
def tuna(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  orthogonality: float = 1e-3,
  epochs: int = 30,
  samples: int = 80,
  recipe: Recipe | None = None,
  decay: float = 0.0,
  shrinkage: float = 1e-4,
  diagonal: bool = False,
) -> ContinualMethod:
  """Trains an adapter per task, and answers with the surest of them and with all of them merged.

  A task starts from the adapter of the task before. The training softmax is over the task's own
  classes. The penalty of task t, counted from 0, is `orthogonality` x e^-(t + 1) x the sum over
  past tasks of the mean over blocks of |mean of cosines between rows of W_up and of W_up^i|, as the
  authors' code computes it. At the end of a task the head is aligned on Gaussians, as in `aligned`.

  At test, each task's adapter answers, and the answer with the least entropy counts; the universal
  adapter answers, too (`unified`). The result is the sum of both softmaxes over all classes seen.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains, bottleneck adapters; `adaptformer(width=16)` by default.
    head: what classifies features, and is aligned; `cosine(scale=20.0, learned=False)` by default.
    orthogonality: weight of the penalty; 0 for CIFAR-100 in the authors' code.
    epochs: of the alignment.
    samples: per class and epoch of the alignment.
    recipe: of the alignment; SGD with momentum, rate 0.005 by default.
    decay: as in `aligned`.
    shrinkage: added to variances.
    diagonal: keep variances alone: C D numbers instead of C D^2.

  Raises:
    ValueError: for a transform other than bottleneck adapters, one that finds no site, a negative
      weight, and as `aligned`; for a problem without classes.

  >>> from pecft_jax.continual import tuna
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = tuna(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.passes(3)
  4.0
  """
  need_classes(capacity.problem, 'tuna')
  at_least(0, orthogonality=orthogonality)
  peft = _default_peft() if peft is None else peft
  head = _default_head() if head is None else head
  need_adapters('TUNA', backbone, peft)
  net = model(backbone, peft)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width

  def init(key, frozen):
    delta = net.init(key, frozen)
    memory = {
      'bank': jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), delta),
      'gaussians': normals.no_gaussians(classes, width, diagonal=diagonal),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    del key
    fresh = normals.without(memory['gaussians'], env.task.classes)
    return params, {**memory, 'gaussians': fresh}

  def forward(params, memory, env, x, key):
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    past = jnp.arange(tasks) < env.task.index
    penalty = orthogonality * jnp.exp(-(env.task.index + 1.0))
    penalty *= alignment_of_rows(memory['bank'], params['delta'], past)
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def consolidate(params, memory, env, batch):
    features = net.features(env.frozen, params['delta'], batch.x)
    more = normals.with_rows(memory['gaussians'], features, batch.y, batch.valid, env.task.classes)
    return {**memory, 'gaussians': more}

  def end_task(params, memory, env):
    return params, {**memory, 'bank': with_slot(memory['bank'], params['delta'], env.task.index)}

  def weights(params, memory, env, slot):
    """The universal adapter in slot 0, and those of the tasks behind it."""
    bank = with_slot(memory['bank'], params['delta'], env.task.index)
    universal = unified(bank, jnp.arange(tasks) <= env.task.index)
    own = take(bank, jnp.maximum(slot - 1, 0))
    return jax.tree.map(lambda a, b: jnp.where(slot == 0, a, b), universal, own)

  def combine(params, memory, env, features, x):
    del memory, x
    answers = jax.vmap(lambda h: head.logits(params['head'], h))(features)
    answers = jax.nn.softmax(only(env.task.seen, answers))  # [T + 1, B, C]
    entropy = -(answers * jnp.log(answers + 1e-10)).sum(-1)
    there = (jnp.arange(tasks) <= env.task.index)[:, None]
    surest = jnp.where(there, entropy[1:], jnp.inf).argmin(0)
    own = jnp.take_along_axis(answers, 1 + surest[None, :, None], 0)[0]
    return only(env.task.seen, answers[0] + own)

  return from_forward(
    'tuna',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    phases=alignment(
      head,
      tasks,
      epochs=epochs,
      samples=samples,
      recipe=_default_recipe() if recipe is None else recipe,
      decay=decay,
      shrinkage=shrinkage,
    ),
    end_task=end_task,
    predict=Parts(
      weights=weights,
      part=net.features,
      combine=combine,
      slots=tasks + 1,
      used=lambda env: env.task.index + 2,
    ),
    passes=lambda count: count + 1.0,
    transforms={'delta': peft},
    head=head,
  )


def unified(bank: Delta, there: Array) -> Delta:
  """One delta of many: of each entry the sign of the mean, and the largest size with that sign.

  This is the elected vector of EMR-merging (Huang et al., 2024, arXiv:2405.17461). Entries whose
  mean is zero count as negative.

  Args:
    bank: [T, ...]
    there: [T] bool, the slots that take part.

  >>> bank = {'w': jnp.array([[1.0, -4.0], [3.0, 1.0], [-2.0, 1.0], [9.0, 9.0]])}
  >>> unified(bank, jnp.array([True, True, True, False]))['w'].tolist()
  [3.0, -4.0]
  """

  def one(slots: Array) -> Array:
    values = jnp.where(there.reshape(-1, *[1] * (slots.ndim - 1)), slots, 0)
    sign = jnp.where(values.sum(0) > 0, 1.0, -1.0)
    return (sign * jnp.maximum(sign * values, 0).max(0)).astype(slots.dtype)

  return jax.tree.map(one, bank)


def alignment_of_rows(bank: Any, delta: Any, past: Array) -> Array:
  """The sum over past slots of the mean over sites of |mean cosine of rows of W_up|: []

  Rows are those of W_up^T [D, r], of length 1; the mean is over all D^2 pairs of them.

  Args:
    bank: `{site path: BottleneckDelta}` with a leading task axis.
    delta: of the current task.
    past: [T] bool, the slots of earlier tasks.
  """

  def middle(up: Array) -> Array:
    """The mean of the rows of W_up^T [..., r], each of length 1; rows of zeros stay."""
    squared = jnp.square(up).sum(-2, keepdims=True)
    return (up * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1))).mean(-1)

  def one(slots: BottleneckDelta, new: BottleneckDelta) -> Array:
    # The mean over pairs of products is the product of the means.
    return jnp.where(past, jnp.abs(middle(slots.up) @ middle(new.up)), 0).sum()

  found = jax.tree.leaves(jax.tree.map(one, bank, delta, is_leaf=is_adapter))
  return sum(found, jnp.zeros(())) / len(found)
