"""SLDA: deep streaming linear discriminant analysis (Hayes & Kanan, 2020, arXiv:1909.01520)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import from_forward, frozen_features, on_frozen_features, only
from pecft_jax.continual.memory.moments import no_moments, with_rows
from pecft_jax.continual.memory.spreads import means_of, root, within
from pecft_jax.continual.memory.statistics import one_hot
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Output


@about(
  'method',
  'statistics',
  Paper('Lifelong machine learning with deep streaming linear discriminant analysis', '1909.01520'),
  needs=('classes',),
  carries='a mean per class, a covariance D x D that classes share, and the classifier',
  tiny=lambda backbone, capacity: slda(backbone, capacity, shrinkage=0.1),
)
@recorded
def slda(backbone: Backbone, capacity: Capacity, *, shrinkage: float = 1e-4) -> ContinualMethod:
  """Linear discriminant analysis on frozen features, by a mean per class and a shared covariance.

  With S the covariance of features around the mean of their class (their scatter / n) and L =
  ((1 - e) S + e I)^-1, the score of class c is w_c f + b_c, w_c = L m_c and b_c = -m_c L m_c / 2.

  The paper updates S with the mean of a class before each example, so that it depends on the order
  of examples; here the scatter is exact, the same in any order. The authors' code may start from a
  covariance that was estimated on base classes; here nothing is known at the start.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    shrinkage: e, in (0, 1]; absolute: features of small variance need less.

  Raises:
    ValueError: for a shrinkage outside (0, 1], or a problem without classes.

  >>> from pecft_jax.continual import slda
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> slda(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'slda'
  """
  need_classes(capacity.problem, 'slda')
  if not 0 < shrinkage <= 1:
    raise ValueError(f'slda: expected a shrinkage in (0, 1], got {shrinkage}')
  width, classes = backbone.width, capacity.classes

  def init(key, frozen):
    del key, frozen
    memory = {
      'moments': no_moments(width, classes),
      'kernel': jnp.zeros((width, classes)),
      'bias': jnp.zeros(classes),
    }
    return {}, memory

  def scores(memory, features):
    # Centred by the mean of all: it adds the same number to all classes, and keeps digits.
    centred = features.astype(jnp.float32) - memory['moments'].mean
    return dot(centred, memory['kernel']) + memory['bias']

  def forward(params, memory, env, x, key):
    del params, key
    features = frozen_features(backbone, env.frozen, x)
    logits = scores(memory, features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    del params
    h = frozen_features(backbone, env.frozen, batch.x).astype(jnp.float32)
    y = one_hot(batch.y, batch.valid, classes)
    return {**memory, 'moments': with_rows(memory['moments'], h, y, batch.valid)}

  def end_task(params, memory, env):
    del env
    moments = memory['moments']
    cov = (1 - shrinkage) * within(moments) + shrinkage * jnp.eye(width)
    away = (means_of(moments)[1] - moments.mean).T  # [D, C]
    kernel = jax.scipy.linalg.cho_solve((root(cov), True), away)
    return params, {**memory, 'kernel': kernel, 'bias': -(away * kernel).sum(0) / 2}

  def answers(params, memory, env, features, x):
    del params, x
    # A class without examples has score 0 by its zero weights; it must not be the best.
    there = memory['moments'].mean_y > 0
    found = jnp.where(there, scores(memory, features), jnp.finfo(jnp.float32).min)
    return only(env.task.seen, found)

  return from_forward(
    'slda',
    backbone,
    capacity,
    init,
    forward,
    masked=False,
    consolidate=consolidate,
    end_task=end_task,
    predict=on_frozen_features(backbone, answers),
    trains=lambda task: False,
  )
