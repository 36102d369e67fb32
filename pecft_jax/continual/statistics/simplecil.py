"""SimpleCIL: nearest class mean on frozen features (Zhou et al., 2023, arXiv:2303.07338)."""

import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import (
  from_forward,
  frozen_features,
  on_frozen_features,
  only,
  unit,
)
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Output


@about(
  'method',
  'statistics',
  Paper(
    'Revisiting class-incremental learning with pre-trained models: generalizability and '
    'adaptivity are all you need',
    '2303.07338',
  ),
  needs=('classes',),
  carries='a sum of features per class',
  tiny=lambda backbone, capacity: simplecil(backbone, capacity),
)
@recorded
def simplecil(backbone: Backbone, capacity: Capacity) -> ContinualMethod:
  """Classifies by cosine to the mean feature of each class; trains nothing.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.

  Raises:
    ValueError: for a problem without classes.

  >>> from pecft_jax.continual import simplecil
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = simplecil(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'simplecil'
  """
  need_classes(capacity.problem, 'simplecil')

  def init(key, frozen):
    del key, frozen
    sums = jnp.zeros((capacity.classes, backbone.width))
    return {}, ClassSums(jnp.zeros(capacity.classes), sums)

  def cosines(memory, features):
    # The direction of a sum is the direction of the mean.
    return unit(features) @ unit(memory.sums).T

  def forward(params, memory, env, x, key):
    del params, key
    features = frozen_features(backbone, env.frozen, x)
    logits = cosines(memory, features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    del params
    sums, counts = class_sums(
      frozen_features(backbone, env.frozen, batch.x), batch.y, batch.valid, capacity.classes
    )
    return ClassSums(memory.counts + counts, memory.sums + sums)

  def answers(params, memory, env, features, x):
    del params, x
    return only(env.task.seen, cosines(memory, features))

  return from_forward(
    'simplecil',
    backbone,
    capacity,
    init,
    forward,
    masked=False,
    predict=on_frozen_features(backbone, answers),
    consolidate=consolidate,
    trains=lambda task: False,
  )
