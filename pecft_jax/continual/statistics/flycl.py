"""Fly-CL: sparse projections of which the largest are kept, and a ridge classifier
(Zou et al., 2025, arXiv:2510.16877)."""

from collections.abc import Sequence

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
)
from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.gcv import gcv_ridge
from pecft_jax.continual.memory.moments import no_moments, with_rows
from pecft_jax.continual.memory.ridge import Examples, least_ridge, solve_surely
from pecft_jax.continual.memory.sample import Sample
from pecft_jax.continual.memory.statistics import one_hot
from pecft_jax.continual.memory.symmetric import dot
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
  Key,
  Output,
  PeftTransform,
)

RIDGES = (1e4, 1e5, 1e6, 1e7, 1e8, 1e9)  # Of the authors' code by default.


@about(
  'method',
  'statistics',
  Paper(
    'Fly-CL: a fly-inspired framework for enhancing efficient decorrelation and reduced training '
    'time in pre-trained model-based continual representation learning',
    '2510.16877',
  ),
  needs=('classes',),
  carries='a sparse matrix D x M, half of a Gram matrix M x M, and sums M x C',
  tiny=lambda backbone, capacity: flycl(
    backbone, capacity, projection=16, links=3, kept=0.3, sample=30, ridges=(0.1, 1.0, 10.0)
  ),
)
@recorded(defaults={'peft': linear_probe, 'head': linear})
def flycl(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  projection: int = 10_000,
  links: int = 100,
  kept: float = 0.01,
  ridges: Sequence[float] = RIDGES,
  sample: int = 2_000,
  seed: int = 0,
) -> ContinualMethod:
  """Solves ridge regressions on sparse codes of the features, exactly.

  Each of M units reads `links` features f(x) with Gaussian weights, z = f(x) R; the code h keeps
  the floor(kept M) largest of z, and is 0 elsewhere. G = sum h h^T and Q = sum h y^T are carried
  from task to task, as `Moments`, so that the classifier (G + ridge I)^-1 Q depends on no order of
  the data. The ridge is chosen anew after each task by generalised cross-validation on its
  examples; of a task with more than `sample`, on a uniform sample of them, whose features f(x) are
  stored until the end of the task. (The authors' code reads all of them.)

  RanPAC has dense projections, relu in the place of the largest, and held-out examples for the
  ridge. Sums and solves are in float32; ridges that are lost in the rounding of the sums
  (`least_ridge`) are left out.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what the first task trains; `linear_probe()` by default, the backbone as it is, as in the
      paper.
    head: what the first task trains beside it, and no prediction reads; `linear()` by default.
    projection: M.
    links: features that a unit reads; all of them, where there are fewer.
    kept: share of the units that are kept, in (0, 1].
    ridges: those that are tried, in ascending order; they are of the scale of sums of squares of h.
    sample: examples of a task that the ridge is chosen on, at most.
    seed: of R, which is drawn once, at the start, and carried.

  Raises:
    ValueError: if the transform finds no site in the backbone, for `projection`, `links` or
      `sample` below 1, a share outside (0, 1] or one that keeps no unit, ridges that are not
      positive and ascending, or a problem without classes.

  >>> from pecft_jax.continual import flycl
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> flycl(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10), projection=500).name
  'flycl'
  """
  need_classes(capacity.problem, 'flycl')
  at_least(1, projection=projection, links=links, sample=sample)
  above(0, kept=kept)
  largest = int(projection * kept)
  if kept > 1 or largest < 1:
    raise ValueError(
      f'expected kept to be a share of {projection} units, at least one, got {kept:g}'
    )
  ridges = tuple(float(ridge) for ridge in ridges)
  if not ridges or ridges[0] <= 0 or list(ridges) != sorted({*ridges}):
    raise ValueError(f'expected positive ridges in ascending order, got {ridges}')
  peft = linear_probe() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)
  anything = bool(jax.tree.leaves(abstract_delta(backbone, peft)))
  classes = capacity.classes

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    key = jax.random.key(seed, impl='threefry2x32')
    memory = {
      'draw': sparse_draw(key, backbone.width, projection, links),
      'moments': no_moments(projection, classes),
      'weights': jnp.zeros((projection, classes)),
      'ridge': jnp.zeros(()),
      'sample': no_examples(),
    }
    return params, memory

  def no_examples():
    item = jax.ShapeDtypeStruct((backbone.width,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return sampling.empty(sample, item)

  def of(frozen, delta, x, key=None):
    # A backbone as it is may have its features cached.
    if not anything:
      return frozen_features(backbone, frozen, x)
    return net.features(frozen, delta, x, key)

  def forward(params, memory, env, x, key):
    del memory
    features = of(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def coded(features, memory):
    return largest_of(dot(features.astype(jnp.float32), memory['draw']), largest)

  def consolidate(params, memory, env, batch):
    features = of(env.frozen, params['delta'], batch.x).astype(jnp.float32)
    targets = one_hot(batch.y, batch.valid, classes)
    offered = sampling.offer(memory['sample'], (features, batch.y), batch.valid, batch.index)
    moments = with_rows(memory['moments'], coded(features, memory), targets, batch.valid)
    return {**memory, 'moments': moments, 'sample': offered}

  def end_task(params, memory, env):
    del env
    moments, found = memory['moments'], memory['sample']
    rows = _examples(found, coded(found.items[0], memory), classes)
    ridge = gcv_ridge(rows, ridges, least=least_ridge(moments))
    weights, ridge = solve_surely(moments, ridge)
    return params, {**memory, 'weights': weights, 'ridge': ridge, 'sample': no_examples()}

  def answers(params, memory, env, features, x):
    del params, x
    return only(env.task.seen, dot(coded(features, memory), memory['weights']))

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], None)  # Its classifier reads codes.

  return from_forward(
    'flycl',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    consolidate=consolidate,
    end_task=end_task,
    predict=on_features(net._replace(features=of), 'delta', answers),
    transforms={'delta': peft},
    head=head,
    adapted=adapted,
    trains=lambda task: anything and task == 0,
  )


def sparse_draw(key: Key, width: int, units: int, links: int) -> Array:
  """A matrix [width, units] with `links` standard normal entries in each column, 0 elsewhere.

  >>> (sparse_draw(jax.random.key(0), 5, 4, 2) != 0).sum(0).tolist()
  [2, 2, 2, 2]
  """
  chosen, weights = jax.random.split(key)
  ranks = jax.random.uniform(chosen, (width, units)).argsort(0).argsort(0)
  return jnp.where(ranks < links, jax.random.normal(weights, (width, units)), 0)


def largest_of(rows: Array, count: int) -> Array:
  """Rows [B, M] with all but the `count` largest entries of each set to 0.

  >>> largest_of(jnp.array([[3.0, -1.0, 2.0, 5.0]]), 2).tolist()
  [[3.0, 0.0, 0.0, 5.0]]
  """
  if count == rows.shape[1]:
    return rows

  def one(row: Array) -> Array:
    values, places = jax.lax.top_k(row, count)
    return jnp.zeros_like(row).at[places].set(values, unique_indices=True)

  return jax.vmap(one)(rows)


def _examples(found: Sample, codes: Array, classes: int) -> Examples:
  valid = found.filled
  return Examples(codes, one_hot(found.items[1], valid, classes), valid)
