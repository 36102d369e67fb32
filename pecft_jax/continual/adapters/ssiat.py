"""SSIAT: semantic-shift incremental adapter tuning (Tan et al., 2024, arXiv:2403.19979)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.continual.memory.alignment import alignment
from pecft_jax.heads import cosine
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Once,
  Output,
  PeftTransform,
)

# Added to every weight, so that a mean far from all new features moves with their average.
_LEAST = 1e-5


class Shift(NamedTuple):
  """Sums over new examples, for each class: of weights, and of weighted moves of features."""

  AXES = {'weights': ('class',), 'moves': ('class', 'feature')}

  weights: Array  # [C]
  moves: Array  # [C, D]


def _default_head() -> Head:
  return cosine(scale=20.0, learned=False)


def _default_recipe() -> Recipe:
  return sgd(0.01, weight_decay=5e-4)


@about(
  'method',
  'adapters',
  Paper(
    'Semantically-shifted incremental adapter-tuning is a continual ViTransformer', '2403.19979'
  ),
  needs=('classes',),
  carries='a Gaussian D x D per class, and the delta from before the task',
  tiny=lambda backbone, capacity: ssiat(
    backbone, capacity, peft=lora('.', rank=2), samples=6, spread=1.0
  ),
)
@recorded(defaults={'peft': adaptformer, 'head': _default_head, 'recipe': _default_recipe})
def ssiat(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  spread: float = 4.0,
  epochs: int = 5,
  samples: int = 256,
  recipe: Recipe | None = None,
  decay: float = 0.1,
  shrinkage: float = 1e-3,
  diagonal: bool = False,
) -> ContinualMethod:
  """Trains one delta on task after task, moves old class means with it, and aligns the head.

  No term ties the delta to its past. The training softmax is over the task's own classes. After
  training, the mean of each old class moves by sum_i w_i (f_t(x_i) - f_{t-1}(x_i)) / sum_i w_i over
  the new examples, with w_i = exp(-|f_{t-1}(x_i) - mean|^2 / (2 spread^2)) + 10^-5. Covariances
  stay. Then the head is trained on draws from all Gaussians, as in `aligned`. Defaults are those
  of the authors' code.

  In that code f_t and f_{t-1} of a row are of different examples, since it goes through shuffled
  data twice; here both are of the same image.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained; `adaptformer()` by default.
    head: what classifies features, and is aligned; `cosine(scale=20.0, learned=False)` by default.
    spread: how far from a mean new features still move it, in units of features.
    epochs: as in `aligned`.
    samples: as in `aligned`.
    recipe: of the alignment; SGD with momentum, rate 0.01 by default.
    decay: as in `aligned`.
    shrinkage: added to variances.
    diagonal: keep variances alone: C D numbers instead of C D^2.

  Raises:
    ValueError: if the transform finds no site; for a spread that is not positive, and as `aligned`;
      for a problem without classes.

  >>> from pecft_jax.continual import ssiat
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = ssiat(model.backbone, Capacity(tasks=5, classes=10))
  >>> [phase.name for phase in method.phases]
  ['shift', 'gaussians', 'align']
  """
  need_classes(capacity.problem, 'ssiat')
  above(0, spread=spread)
  peft = adaptformer() if peft is None else peft
  head = _default_head() if head is None else head
  net = model(backbone, peft)
  classes, width = capacity.classes, backbone.width

  def init(key, frozen):
    delta = net.init(key, frozen)
    memory = {
      'before': jax.tree.map(jnp.copy, delta),
      'gaussians': normals.no_gaussians(classes, width, diagonal=diagonal),
      'shift': _no_shift(classes, width),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    del key
    fresh = normals.without(memory['gaussians'], env.task.classes)
    return params, {**memory, 'before': params['delta'], 'gaussians': fresh}

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    features = net.features(env.frozen, params['delta'], batch.x)

    def moved():
      before = net.features(env.frozen, memory['before'], batch.x)
      old = env.task.past & ~env.task.classes
      return added(
        memory['shift'], memory['gaussians'].mean, before, features, batch.valid, old, spread
      )

    # The first task moves nothing, and computes nothing of it.
    shift = jax.lax.cond(env.task.past.any(), moved, lambda: memory['shift'])
    more = normals.with_rows(memory['gaussians'], features, batch.y, batch.valid, env.task.classes)
    return {**memory, 'gaussians': more, 'shift': shift}

  def move(params, memory, env, key):
    del key, env
    weights, moves = memory['shift']
    known = memory['gaussians']
    mean = known.mean + moves / jnp.where(weights > 0, weights, 1)[:, None]
    shifted = known._replace(mean=mean)
    return params, {**memory, 'gaussians': shifted, 'shift': _no_shift(classes, width)}

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], as_linear(head, params['head']))

  align = alignment(
    head,
    capacity.tasks,
    epochs=epochs,
    samples=samples,
    recipe=_default_recipe() if recipe is None else recipe,
    decay=decay,
    shrinkage=shrinkage,
    after='shift',
  )
  return from_forward(
    'ssiat',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    phases=(Once('shift', move, after='consolidate'), *align),
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
  )


def _no_shift(classes: int, width: int) -> Shift:
  return Shift(jnp.zeros(classes), jnp.zeros((classes, width)))


def added(
  shift: Shift, mean: Array, before: Array, now: Array, valid: Array, old: Array, spread: float
) -> Shift:
  """A shift with the moves of a batch.

  Args:
    shift: of the batches before.
    mean: [C, D], of classes in the feature space from before the task.
    before: [B, D], features there.
    now: [B, D], features of the same examples after training.
    valid: [B] bool
    old: [C] bool, the classes whose means move.
    spread: of the weights.
  """
  before, now = before.astype(jnp.float32), now.astype(jnp.float32)
  distance = jnp.square(before[:, None] - mean).sum(-1)  # [B, C]
  weights = jnp.exp(-distance / (2 * spread**2)) + _LEAST
  weights = jnp.where(valid[:, None] & old, weights, 0)
  moves = jnp.matmul(weights.T, now - before, precision='highest')
  return Shift(shift.weights + weights.sum(0), shift.moves + moves)
