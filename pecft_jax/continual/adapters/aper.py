"""APER: adapt and merge, formerly ADAM (Zhou et al., 2023, arXiv:2303.07338)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  only,
  unit,
)
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.heads import cosine
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  Parts,
  PeftTransform,
)


@about(
  'method',
  'adapters',
  Paper(
    'Revisiting class-incremental learning with pre-trained models: generalizability and '
    'adaptivity are all you need',
    '2303.07338',
  ),
  needs=('classes', 'trained delta'),
  carries='a sum of features of both models per class',
  passes='2',
  tiny=lambda backbone, capacity: aper(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': adaptformer, 'head': cosine})
def aper(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
) -> ContinualMethod:
  """Trains a delta on the first task only, and classifies by class means in both models.

  The features [f(x), f*(x)] of the frozen and of the adapted backbone are joined to one vector
  [B, 2 D]. Each class is the mean of its vectors, and an example is of the class with the largest
  cosine. The lengths of the two halves are left as they are, as in the authors' code.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what the first task trains; `adaptformer()` by default. The paper's other variants are
      `ssf()`, `vpt_shallow(length=5)`, `vpt_deep(length=5)` and `full()`.
    head: what the first task trains, and no prediction reads; `cosine()` by default.

  Raises:
    ValueError: if the transform has nothing to train, or finds no site; for a problem without
      classes.

  >>> from pecft_jax.continual import aper
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = aper(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.trains(0), method.trains(1)
  (True, False)
  """
  need_classes(capacity.problem, 'aper')
  peft = adaptformer() if peft is None else peft
  if not jax.tree.leaves(abstract_delta(backbone, peft)):
    raise ValueError(
      'APER needs a transform that trains something of the backbone: with a linear probe both '
      'halves of its features would be one; choose simplecil, or an adapter, SSF, prompts, ...'
    )
  head = cosine() if head is None else head
  net, classes = model(backbone, peft), capacity.classes

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    return params, ClassSums(jnp.zeros(classes), jnp.zeros((classes, 2 * backbone.width)))

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def joined(frozen, delta, x):
    """The features of both models [B, 2 D]."""
    both = frozen_features(backbone, frozen, x), net.features(frozen, delta, x)
    return jnp.concatenate(both, -1)

  def consolidate(params, memory, env, batch):
    features = joined(env.frozen, params['delta'], batch.x)
    sums, counts = class_sums(features, batch.y, batch.valid, classes)
    return ClassSums(memory.counts + counts, memory.sums + sums)

  def combine(params, memory, env, parts, x):
    del params, x
    # The direction of a sum is the direction of the mean.
    return only(env.task.seen, unit(parts[0]) @ unit(memory.sums).T)

  # The delta stays as it is after the first task, and so does the part of an example.
  predict = Parts(
    weights=lambda params, memory, env, slot: params['delta'], part=joined, combine=combine
  )

  return from_forward(
    'aper',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    consolidate=consolidate,
    predict=predict,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    transforms={'delta': peft},
    head=head,
    trains=lambda task: task == 0,
    passes=lambda tasks: 2.0,
  )
