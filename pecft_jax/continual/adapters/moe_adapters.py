"""MoE-Adapters: experts that are shared by all tasks, and a router for each of them.

Yu et al., 2024, arXiv:2403.11549. An example is given to a few adapters of each block. Those that a
task used most never change again; later tasks may use them. Autoencoders of frozen features find
the task at test.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.adapters.routed import (
  Router,
  need_first_token,
  routed_model,
)
from pecft_jax.continual.adapters.slices import need_adapters
from pecft_jax.continual.core import (
  from_forward,
  frozen_features,
  mean_of_valid,
  new_head,
  on_frozen_features,
  only,
  raw,
  unit,
  with_query,
)
from pecft_jax.continual.memory.novelty import bounded_errors, fresh_descriptor
from pecft_jax.continual.memory.statistics import ClassSums, class_sums
from pecft_jax.continual.prompts.prefixes import room_for, with_slot
from pecft_jax.continual.prompts.tasks import task_or, with_tasks_of_labels
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import Read, adaptformer
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, adam
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Env,
  Fit,
  FitLoss,
  Head,
  Key,
  LossHook,
  Output,
  Params,
  PeftTransform,
  Update,
)


def _default_peft() -> PeftTransform:
  return adaptformer(width=64, read='residual', dropout=0.1)


def _default_recipe() -> Recipe:
  return adam(1e-2)


@about(
  'method',
  'adapters',
  Paper(
    'Boosting continual learning of vision-language models via mixture-of-experts adapters',
    '2403.11549',
  ),
  needs=('adapters', 'class token', 'classes'),
  carries='experts shared by all tasks; a router and an autoencoder per task',
  passes='2',
  switches=(
    Switch(
      'batchwise',
      True,
      'all examples of a test batch get the task of the smallest mean error, where a batch of one '
      'task gives the task away',
      'JiazuoYu/MoE-Adapters4CL',
    ),
  ),
  tiny={
    '': lambda backbone, capacity: moe_adapters(
      backbone, capacity, peft=adaptformer(width=2), experts=3, hidden=3, selector_epochs=1
    ),
    'with a threshold': lambda backbone, capacity: moe_adapters(
      backbone,
      capacity,
      peft=adaptformer(width=2, dropout=0.1),
      experts=4,
      hidden=3,
      selector_epochs=1,
      threshold=0.05,
    ),
  },
)
@recorded(defaults={'peft': _default_peft, 'head': linear, 'selector': _default_recipe})
def moe_adapters(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  read: Read = 'residual',
  experts: int = 22,
  top_k: int = 2,
  freeze: int = 2,
  hidden: int = 100,
  threshold: float | None = None,
  selector: Recipe | None = None,
  selector_epochs: int = 10,
  batchwise: bool = False,
) -> ContinualMethod:
  """Trains a router per task over adapters that tasks share, and keeps those that were used most.

  In each adapted block, the router of a task scores E experts by the class token x of an example,
  and those with the top k scores x W are added to the MLP, weighted by the softmax of these scores.
  In training scores have normal noise of deviation softplus(x W_n) + 0.01. After a task the experts
  of each block that were given the most examples are frozen, in addition to those frozen before.
  The softmax of the loss is over the task's own classes.

  An autoencoder per task is trained on the sigmoid of frozen features. At test, that with the
  smallest error names the task whose router an example goes through, unless the scenario gives the
  task. With a threshold, examples of larger errors go to the frozen model. In the paper that is
  CLIP, which has a classifier by its text tower; here the nearest class mean of frozen features
  answers for it.

  Departures from the authors' code: a vision transformer and a head in the place of CLIP's two
  towers; autoencoders of the backbone's pooled feature, there of a convolution of AlexNet, and none
  for reference data; experts are counted in one pass over the task's data after training, without
  noise, there in every update. The paper's code computes a loss that balances experts and never
  adds it; here there is none.

  All experts are computed for all examples, so a block costs E adapters.

  Args:
    backbone: frozen, with a class token.
    capacity: tasks and classes of the sequence.
    peft: what an expert is: a bottleneck adapter, `adaptformer(width=64, read='residual',
      dropout=0.1)` by default.
    head: what classifies features; `linear()` by default.
    read: what routers read, `residual` or `normed`; give the adapters the same.
    experts: E, of each block.
    top_k: experts that an example is given to, at least 2: a single one has the weight 1, whatever
      the router says.
    freeze: experts of each block that are frozen after a task; 0 for none.
    hidden: H, width of the autoencoders.
    threshold: of the mean squared error; None for the routers alone. Its size depends on the
      backbone: the authors' 0.0655 is of features of AlexNet.
    selector: how autoencoders are trained, `adam(1e-2)` by default.
    selector_epochs: passes over the task's data for that.
    batchwise: at test, use the task with the smallest mean error for all examples of a batch.
      Predictions then depend on what else is in the batch, its padding included; where test
      batches hold one task, it leaks the task identity.

  Raises:
    ValueError: for a transform that is no such adapter or finds no site, `top_k` below 2 or above
      `experts`, `freeze` above `experts`, a size below 1, a backbone without a class token, or a
      problem without classes.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import moe_adapters
  >>> from pecft_jax.typing import Capacity
  >>> method = moe_adapters(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10), experts=6)
  >>> [phase.name for phase in method.phases], method.passes(5)
  (['select'], 2.0)
  """
  need_classes(capacity.problem, 'moe_adapters')
  _check(experts, top_k, freeze, hidden=hidden, selector_epochs=selector_epochs)
  at_least(0, threshold=threshold)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  selector = _default_recipe() if selector is None else selector
  paths = list(need_adapters('moe_adapters', backbone, peft))
  need_first_token('moe_adapters', backbone)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width
  net = routed_model(backbone, peft, experts, tasks, top_k, read)

  fresh = functools.partial(_fresh, paths, width, experts, hidden)

  def init(key, frozen):
    k_experts, k_fresh = jax.random.split(key)
    own = fresh(k_fresh)
    params = {
      'experts': net.experts(k_experts, frozen),
      **own,
      'head': new_head(head, key, backbone, capacity),
    }
    memory = {
      'routers': room_for(tasks, own['router']),
      'bank': room_for(tasks, own['coder']),
      'still': {p: jnp.zeros(experts, bool) for p in paths},
      'used': {p: jnp.zeros(experts, jnp.int32) for p in paths},
    }
    sums = ClassSums(jnp.zeros(classes), jnp.zeros((classes, width)))
    return params, memory if threshold is None else {**memory, 'means': sums}

  def begin_task(params, memory, env, key):
    del env
    return {**params, **fresh(key)}, memory

  def routers(params, memory, env):
    """Of all tasks [T, ...]."""
    return with_slot(memory['routers'], env.task.index, params['router'])

  def coders(params, memory, env):
    return with_slot(memory['bank'], env.task.index, params['coder'])

  def state(params, memory, env):
    """The frozen weights, the experts, and the routers."""
    experts = {p: _held(params['experts'][p], memory['still'][p]) for p in paths}
    return env.frozen, experts, routers(params, memory, env)

  def forward(params, memory, env, x, key):
    task = task_or(x, env, jnp.broadcast_to(env.task.index, raw(x).shape[:1]))
    features = net.features(*state(params, memory, env), x, task, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    task = jnp.broadcast_to(env.task.index, batch.valid.shape)
    given = net.given(*state(params, memory, env), batch.x, task)
    count = lambda p: (given[p] & batch.valid[:, None]).sum(0, dtype=jnp.int32)
    found = {**memory, 'used': {p: memory['used'][p] + count(p) for p in paths}}
    if threshold is None:
      return found
    query = frozen_features(backbone, env.frozen, batch.x)
    sums, counts = class_sums(query, batch.y, batch.valid, classes)
    return {**found, 'means': jax.tree.map(jnp.add, memory['means'], ClassSums(counts, sums))}

  def end_task(params, memory, env):
    return params, {
      **memory,
      'routers': routers(params, memory, env),
      'bank': coders(params, memory, env),
      'still': {p: memory['still'][p] | most_used(memory['used'][p], freeze) for p in paths},
      'used': {p: jnp.zeros(experts, jnp.int32) for p in paths},
    }

  def answers(params, memory, env, query, x):
    errors = _errors(coders(params, memory, env), query, env.task.index, batchwise)
    given, task = task_or(x, env, jnp.array(-1)), task_or(x, env, errors.argmin(0))
    features = net.features(*state(params, memory, env), with_query(x, query), task)
    logits = head.logits(params['head'], features)
    if threshold is not None:
      unknown = (errors.min(0) > threshold) & (given < 0)
      # The direction of a sum is the direction of the mean.
      logits = jnp.where(unknown[:, None], unit(query) @ unit(memory['means'].sums).T, logits)
    return only(env.task.seen, logits)

  plain = from_forward(
    'moe_adapters',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    observe=_keep_still,
    phases=(
      Fit(
        'select', _select(backbone), 'train', selector, trains=('coder',), epochs=selector_epochs
      ),
    ),
    consolidate=consolidate,
    end_task=end_task,
    predict=on_frozen_features(backbone, answers),
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    passes=lambda tasks: 2.0,
    head=head,
    renewed=('router', 'coder'),
  )

  return plain._replace(loss=_by_labels(plain.loss))


def _fresh(paths: Sequence[str], width: int, experts: int, hidden: int, key: Key) -> dict[str, Any]:
  """A task's routers and its autoencoder."""
  none = lambda: jnp.zeros((width, experts))
  router = {p: Router(none(), none()) for p in paths}
  return {'router': router, 'coder': fresh_descriptor(key, width, hidden)}


def _select(backbone: Backbone) -> FitLoss:
  """The mean error of the task's autoencoder."""

  def select(params: Params, memory: Any, env: Env, batch: Batch | None, key: Key, /) -> Array:
    del memory, key
    assert batch is not None  # The fit reads data.
    query = frozen_features(backbone, env.frozen, batch.x)
    return mean_of_valid(bounded_errors(params['coder'], query), batch.valid)

  return select


def _keep_still(
  params: Params, memory: Any, env: Env, batch: Batch, out: Output, update: Update, key: Key
) -> tuple[Params, Any]:
  """Puts frozen experts back, which have no gradient, but may have a decay of weights."""
  del env, batch, out, key
  before = update.before['experts']
  put = lambda p, now: _chosen(memory['still'][p], before[p], now)
  return {**params, 'experts': {p: put(p, now) for p, now in params['experts'].items()}}, memory


def _by_labels(loss: LossHook) -> LossHook:
  """A loss for which the task of an example is that of its class: a replayed one may be older."""

  def known(params, memory, env, batch, key):
    return loss(params, memory, env, with_tasks_of_labels(batch, env), key)

  return known


def _check(experts: int, top_k: int, freeze: int, **sizes: int) -> None:
  at_least(1, **sizes)
  at_least(0, freeze=freeze)
  if not 2 <= top_k <= experts or freeze > experts:
    raise ValueError(
      f'expected 2 <= top_k <= experts and freeze <= experts, got top_k={top_k}, freeze={freeze}, '
      f'experts={experts}'
    )


def _errors(coders: Any, query: Array, index: Array, batchwise: bool) -> Array:
  """The error of each example under the autoencoder of each task [T, B], inf for tasks to come."""
  errors = jax.vmap(bounded_errors, (0, None))(coders, query)
  if batchwise:
    errors = jnp.broadcast_to(errors.mean(1, keepdims=True), errors.shape)
  return jnp.where(jnp.arange(errors.shape[0])[:, None] <= index, errors, jnp.inf)


def most_used(counts: Array, many: int) -> Array:
  """Which experts [E] bool were given the most examples, of [E] int32; of equal ones the first.

  >>> most_used(jnp.array([3, 0, 5, 5]), 2).tolist()
  [False, False, True, True]
  """
  order = jnp.argsort(-counts, stable=True)
  return jnp.zeros(counts.shape, bool).at[order[:many]].set(True)


def _chosen(which: Array, ones: Any, others: Any) -> Any:
  """A bank [E, ...] with the slots `which` [E] bool of one, and the rest of another."""

  def one(a: Array, b: Array) -> Array:
    return jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(one, ones, others)


def _held(experts: Any, still: Array) -> Any:
  """A bank [E, ...] without gradients of frozen slots."""
  return _chosen(still, jax.lax.stop_gradient(experts), experts)
