"""HiDe-Prompt: hierarchical decomposition of prompt-based continual learning (Wang et al., 2023,
arXiv:2310.07234).

Within-task prediction by a prompt per task, task-identity inference by a head on frozen features,
and task-adaptive prediction by a head over the prompted features of all tasks. Both heads are
aligned on Gaussian replay.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.bounds.masked import masked_probe
from pecft_jax.continual.core import (
  Model,
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  only,
  raw,
)
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.continual.prompts.prefixes import (
  layers_of,
  prefixes_at,
  room_for,
  with_slot,
)
from pecft_jax.continual.prompts.tasks import task_or
from pecft_jax.continual.wrappers.aligned import aligned
from pecft_jax.heads import linear
from pecft_jax.peft.compose import mix, take
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, adam, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Delta,
  Fit,
  Head,
  Inputs,
  Kept,
  Once,
  Output,
  Params,
  PeftTransform,
  Phase,
)


def of_heads() -> Recipe:
  """Of the alignment of either head, as in the authors' code."""
  return sgd(0.005)


def of_identity() -> Recipe:
  """Of the head that finds the task, on the task's data."""
  return adam(5e-4)


@about(
  'method',
  'prompts',
  Paper(
    'Hierarchical decomposition of prompt-based continual learning: rethinking obscured '
    'sub-optimality',
    '2310.07234',
  ),
  needs=('attention', 'classes'),
  carries='a prefix per task, and two Gaussians D x D per class',
  passes='2',
  tiny=lambda backbone, capacity: hide_prompt(
    backbone, capacity, length=2, epochs=1, samples=6, identity_epochs=1, diagonal=True
  ),
)
@recorded(defaults={'head': linear, 'recipe': of_heads, 'identity_recipe': of_identity})
def hide_prompt(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  length: int = 5,
  blend: float = 0.01,
  contrast: float = 0.1,
  temperature: float = 0.8,
  epochs: int = 30,
  samples: int = 120,
  recipe: Recipe | None = None,
  diagonal: bool = False,
  identity_epochs: int = 20,
  identity_recipe: Recipe | None = None,
) -> ContinualMethod:
  """Trains a delta per task; one head finds the task, and another classifies over all tasks.

  A task's delta starts from the one before. Within a task it is (1 - blend) e_t + blend x the mean
  of all earlier ones, in training and from then on. Its loss is the cross-entropy among the task's
  own classes, plus `contrast` times a term that pushes features apart: with M the mean features of
  old classes and the features of the batch, the mean over rows of the cross-entropy of
  M M^T / temperature to the row itself.

  The head that finds the task reads frozen features. It is trained on the task's data before the
  delta, then on draws from a Gaussian per class, as in `aligned`. At test the task is that of its
  best class, or the one that the scenario gives, and the other head classifies the feature under
  this task's delta. It is aligned in the same way, on Gaussians of the features under each task's
  delta. A class that comes again belongs to the latest of its tasks.

  Departures from the authors' code: no layers are trained between frozen features and the head that
  finds the task; a class has one Gaussian, there by default 10 centres found by K-means with
  variances of their own.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains; by default prefixes in the first five blocks, or in those that the
      backbone has.
    head: what classifies features, of both kinds; `linear()` by default.
    length: keys, and as many values, of the default prefixes.
    blend: share of the mean of earlier deltas, in [0, 1].
    contrast: weight of the term that pushes features apart.
    temperature: of that term.
    epochs: of the alignment of either head, see `aligned`.
    samples: per class and epoch of alignment; also its batch size.
    recipe: of alignment; SGD with momentum, rate 0.005 by default.
    diagonal: keep variances alone, not covariances.
    identity_epochs: passes over the task's data of the head that finds the task.
    identity_recipe: its optimizer there; Adam with rate 5e-4 by default.

  Raises:
    ValueError: for a backbone without the transform's sites, a size below 1, a negative weight, a
      temperature that is not positive, a share above 1, or a problem without classes.

  >>> from pecft_jax.continual import hide_prompt
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = hide_prompt(model.backbone, Capacity(tasks=5, classes=10))
  >>> [phase.name for phase in method.phases][:2]
  ['identify', 'identity gaussians']
  """
  head = linear() if head is None else head
  need_classes(capacity.problem, 'hide_prompt')
  at_least(1, length=length, identity_epochs=identity_epochs)
  at_least(0, blend=blend, contrast=contrast)
  above(0, temperature=temperature)
  if blend > 1:
    raise ValueError(f'blend must be in 0..1, got {blend}')
  if peft is None:
    peft = prefixes_at(layers_of(backbone, None, range(5)), length)
  shape = abstract_delta(backbone, peft)
  net, tasks, classes = model(backbone, peft), *capacity[:2]

  def replayed(inner: ContinualMethod) -> ContinualMethod:
    return aligned(
      inner,
      epochs=epochs,
      samples=samples,
      recipe=of_heads() if recipe is None else recipe,
      temperature=None,
      decay=0.0,
      diagonal=diagonal,
    )

  identity = replayed(masked_probe(backbone, capacity, head=head))

  def init(key, frozen):
    k_delta, k_identity = jax.random.split(key)
    asked, known = identity.init(k_identity, frozen)
    params = {
      'delta': net.init(k_delta, frozen),
      'head': new_head(head, key, backbone, capacity),
      'identity': asked,
    }
    return params, {
      'bank': room_for(tasks, shape),
      'means': ClassSums(jnp.zeros(classes), jnp.zeros((classes, backbone.width))),
      'latest': jnp.zeros(classes, jnp.int32),
      'identity': known,
    }

  def begin_task(params, memory, env, key):
    assert identity.begin_task is not None
    asked, known = identity.begin_task(params['identity'], memory['identity'], env, key)
    delta = _start(params['delta'], memory['bank'], env.task.index)
    more = {
      'means': _without(memory['means'], env.task.classes),
      'latest': jnp.where(env.task.classes, env.task.index, memory['latest']),
      'identity': known,
    }
    return {**params, 'delta': delta, 'identity': asked}, {**memory, **more}

  def now(params, memory, env):
    """The delta of the current task."""
    return _blended(params['delta'], memory['bank'], tasks, env.task.index, blend)

  def forward(params, memory, env, x, key):
    features = net.features(env.frozen, now(params, memory, env), x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def predict(params, memory, env, x):
    asked = identity.predict(params['identity'], memory['identity'], env, x)
    task = task_or(x, env, memory['latest'][asked.argmax(-1)])
    bank = with_slot(memory['bank'], env.task.index, now(params, memory, env))

    features = of_own_delta(net, env.frozen, bank, task, x)
    return only(env.task.seen, head.logits(params['head'], features))

  def consolidate(params, memory, env, batch):
    assert identity.consolidate is not None
    known = identity.consolidate(params['identity'], memory['identity'], env, batch)
    features = forward(params, memory, env, batch.x, None).features
    means = _with_batch(memory['means'], features, batch, env.task.classes)
    return {**memory, 'means': means, 'identity': known}

  def end_task(params, memory, env):
    bank = with_slot(memory['bank'], env.task.index, now(params, memory, env))
    return params, {**memory, 'bank': bank}

  def identify(params, memory, env, batch, key):
    return identity.loss(params['identity'], memory['identity'], env, batch, key)[0]

  plain = from_forward(
    'hide_prompt',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    predict=predict,
    phases=(
      Fit(
        'identify',
        identify,
        after='begin',
        recipe=of_identity() if identity_recipe is None else identity_recipe,
        trains=('identity',),
        epochs=identity_epochs,
      ),
      *(_inside(phase) for phase in identity.phases),
    ),
    transforms={'delta': peft},
    head=head,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    passes=lambda tasks: 2.0,
    renewed=('delta',) if blend else (),
  )

  def loss(params, memory, env, batch, key):
    found, out = plain.loss(params, memory, env, batch, key)
    old, there = _means_of(memory['means'], env.task.past)
    apart = apartness(out.features, batch.valid, old, there, temperature)
    return found + contrast * apart, out

  # The settings are those of this factory, which replace those that `aligned` records.
  within = plain._replace(loss=loss, settings={'name': 'within tasks'})
  return replayed(within)._replace(name='hide_prompt')


def apartness(
  features: Array, valid: Array, means: Array, there: Array, temperature: float
) -> Array:
  """The mean over rows of M of the cross-entropy of M M^T / temperature to the row itself: [].

  Args:
    features: [B, D], rows of M where `valid` [B] bool.
    valid: [B] bool
    means: [C, D], rows of M where `there` [C] bool.
    there: [C] bool
    temperature: positive.

  >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  >>> all_of = jnp.ones(2, bool)
  >>> round(float(apartness(rows, all_of, rows, ~all_of, 1.0)), 4)  # log(1 + exp(-1))
  0.3133
  """
  rows = jnp.concatenate([means, features.astype(jnp.float32)])
  used = jnp.concatenate([there, valid])
  rows = jnp.where(used[:, None], rows, 0)
  alike = jnp.matmul(rows, rows.T, precision='highest') / temperature
  own = jnp.diagonal(alike)
  each = jax.nn.logsumexp(alike, axis=1, where=used[None]) - own
  return jnp.where(used, each, 0).sum() / jnp.maximum(used.sum(), 1)


def of_own_delta(net: Model, frozen: Params, bank: Delta, task: Array, x: Inputs) -> Array:
  """Features [B, D] of each example under the delta of its task [B], in one pass."""

  def one(task: Array, x: Array) -> Array:
    return net.features(frozen, take(bank, task), x[None])[0]

  return jax.vmap(one)(task, jnp.asarray(raw(x)))


def _start(delta: Delta, bank: Delta, index: Array) -> Delta:
  """The delta of the task before; in the first task the one given."""
  before = take(bank, jnp.maximum(index - 1, 0))
  return jax.tree.map(lambda now, old: jnp.where(index > 0, old, now), delta, before)


def _blended(new: Delta, bank: Delta, tasks: int, index: Array, blend: float) -> Delta:
  """(1 - blend) new + blend x the mean of earlier deltas, which get no gradient.

  What is `Kept` is that of the new one.
  """
  if not blend:
    return new
  earlier = mix(bank, (jnp.arange(tasks) < index) / jnp.maximum(index, 1))
  share = jnp.where(index > 0, blend, 0.0)

  def one(new: Any, old: Any) -> Any:
    if isinstance(new, Kept):
      return new
    return (1 - share) * new + share * jax.lax.stop_gradient(old)

  return jax.tree.map(one, new, earlier, is_leaf=lambda leaf: isinstance(leaf, Kept))


def _without(means: ClassSums, own: Array) -> ClassSums:
  """Resets some classes [C] bool, before they are gathered again."""
  return ClassSums(jnp.where(own, 0, means.counts), jnp.where(own[:, None], 0, means.sums))


def _with_batch(means: ClassSums, features: Array, batch: Batch, own: Array) -> ClassSums:
  """The sums with the examples of a batch whose classes are among some [C] bool."""
  valid = batch.valid & own[batch.y]
  sums, counts = class_sums(features, batch.y, valid, len(own))
  return ClassSums(means.counts + counts, means.sums + sums)


def _means_of(means: ClassSums, past: Array) -> tuple[Array, Array]:
  """Means [C, D], and of which past classes there are some [C] bool."""
  return means.sums / jnp.maximum(means.counts, 1)[:, None], past & (means.counts > 0)


# By phase of `aligned`, what the inner one follows.
_AFTER = {'consolidate': 'consolidate', 'gaussians': 'identity gaussians'}


def _inside(phase: Phase) -> Phase:
  """A phase of the method that finds the task, on its part of params and memory."""
  new = phase._replace(name=f'identity {phase.name}', after=_AFTER[phase.after])
  if isinstance(phase, Once):
    hook = phase.hook

    def run(params, memory, env, key):
      asked, known = hook(params['identity'], memory['identity'], env, key)
      return {**params, 'identity': asked}, {**memory, 'identity': known}

    return new._replace(hook=run)
  assert isinstance(phase, Fit)
  inner = phase.loss

  def loss(params, memory, env, batch, key):
    return inner(params['identity'], memory['identity'], env, batch, key)

  return new._replace(loss=loss, trains=('identity',))
