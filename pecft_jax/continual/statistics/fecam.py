"""FeCAM: Mahalanobis distances by class covariances (Goswami et al., 2023, arXiv:2309.14062)."""

from typing import Literal

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  on_features,
  only,
  unit,
)
from pecft_jax.continual.memory import spreads
from pecft_jax.continual.memory.spreads import Shrinkage, Spread
from pecft_jax.heads import linear
from pecft_jax.peft.selective.select import linear_probe
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


@about(
  'method',
  'statistics',
  Paper(
    'FeCAM: exploiting the heterogeneity of class distributions in exemplar-free continual '
    'learning',
    '2309.14062',
  ),
  needs=('classes',),
  carries='a covariance D x D per class, or one that is shared, diagonal or of low rank',
  tiny={
    '': lambda backbone, capacity: fecam(backbone, capacity),
    'low-rank': lambda backbone, capacity: fecam(
      backbone, capacity, covariance='low-rank', rank=3, features='unit', tukey=0.5
    ),
  },
)
@recorded(defaults={'peft': linear_probe, 'head': linear})
def fecam(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  covariance: Literal['full', 'shared', 'diagonal', 'low-rank'] = 'full',
  rank: int = 32,
  diagonal: float = 1.0,
  off_diagonal: float = 1.0,
  normalised: bool = True,
  features: Literal['raw', 'unit'] = 'raw',
  tukey: float | None = None,
) -> ContinualMethod:
  """Classifies by the Mahalanobis distance to class means; trains on the first task at most.

  The covariance S of a class is shrunk, S + g1 v_d I + g2 v_o (1 - I) with v_d the mean of its
  variances and v_o of its covariances, and normalised to correlations R, so that
  determinants are comparable. The distance of a feature is (f - m)^T R^-1 (f - m),
  with f and the class mean m scaled to length 1.

  Carried, in numbers of 4 bytes besides means (C classes, D features, rank r): `full` C D (D + 1),
  `low-rank` C D (r + 1), `shared` D^2 + C D, `diagonal` C D. Statistics are exact sums:
  they do not depend on the order of examples, and a class may come with several tasks.

  Here the shared covariance is that around class means, while the authors' code averages that of
  all features of a task over tasks; and Tukey's transform is applied to features before the mean,
  there to the mean. Low rank is this library's (a Nystrom approximation).

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what the first task trains; `linear_probe()` by default, the backbone as it is, as in the
      paper on ViTs.
    head: what the first task trains beside it, and no prediction reads; `linear()` by default.
    covariance: what is carried of each class.
    rank: of `low-rank`.
    diagonal: g1; 1 or more for classes of fewer examples than features.
    off_diagonal: g2; 0 in the authors' code for ViTs.
    normalised: to correlations; diagonal ones to variances of length 1, as there.
    features: `raw`: statistics are of features as they are, and features and means
      are scaled to length 1 in distances, as in the paper. `unit`: of features of length 1, whose
      means are not scaled again, as in the authors' code for ViTs.
    tukey: the power of Tukey's transform f^tukey, 0.5 in the paper on ResNets, whose features
      are not negative; negative ones keep their sign. None for none.

  Raises:
    ValueError: if the transform finds no site, for a shrinkage that is not positive or a negative
      one off the diagonal, a rank below 1, a power that is not positive, or a problem without
      classes.

  >>> from pecft_jax.continual import fecam
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> fecam(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'fecam'
  """
  need_classes(capacity.problem, 'fecam')
  above(0, diagonal=diagonal, tukey=tukey)
  at_least(0, off_diagonal=off_diagonal)
  at_least(1, rank=rank)
  peft = linear_probe() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)
  anything = bool(jax.tree.leaves(abstract_delta(backbone, peft)))
  classes = capacity.classes
  by = Shrinkage(diagonal, off_diagonal, normalised)
  spread: Spread = {
    'full': spreads.full,
    'shared': spreads.shared,
    'diagonal': spreads.diagonal,
    'low-rank': lambda: spreads.low_rank(rank),
  }[covariance]()

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    return params, spread.empty(classes, backbone.width)

  def of(frozen, delta, x, key=None):
    # A backbone as it is may have its features cached.
    if not anything:
      return frozen_features(backbone, frozen, x)
    return net.features(frozen, delta, x, key)

  def transformed(rows: Array) -> Array:
    rows = rows.astype(jnp.float32)
    if features == 'unit':
      rows = unit(rows)
    return rows if tukey is None else jnp.sign(rows) * jnp.abs(rows) ** tukey

  def scores(memory, rows: Array) -> Array:
    counts, means = spread.means(memory)
    rows = transformed(rows)
    if features == 'raw':
      rows, means = unit(rows), unit(means)
    distances = spread.distances(memory, lambda c: rows - means[c], by)
    return jnp.where(counts > 0, -distances, jnp.finfo(jnp.float32).min)

  def forward(params, memory, env, x, key):
    del memory
    rows = of(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], rows)
    return Output(logits, jnp.zeros(logits.shape[0]), rows)

  def begin_task(params, memory, env, key):
    del key
    return params, spread.opened(memory, env.task.classes)

  def consolidate(params, memory, env, batch):
    rows = transformed(of(env.frozen, params['delta'], batch.x))
    return spread.add(memory, rows, batch.y, batch.valid, env.task.classes)

  def end_task(params, memory, env):
    return params, spread.closed(memory, env.task.classes, by)

  def answers(params, memory, env, rows, x):
    del params, x
    return only(env.task.seen, scores(memory, rows))

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], None)  # Distances are no head.

  return from_forward(
    'fecam',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    predict=on_features(net._replace(features=of), 'delta', answers),
    transforms={'delta': peft},
    head=head,
    adapted=adapted,
    trains=lambda task: anything and task == 0,
  )
