"""CL-LoRA: task-shared and task-specific low-rank adaptation (He et al., 2025, arXiv:2505.24816).

The lower blocks have one LoRA for all tasks, the upper blocks one for each task. Classes are
prototypes in the features of their own task.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import (
  from_forward,
  model,
  new_head,
  normalised,
  only,
  raw,
  unit,
)
from pecft_jax.continual.lowrank.sums import need_lora, stored
from pecft_jax.continual.memory.statistics import class_sums
from pecft_jax.heads import cosine
from pecft_jax.peft.compose import at_layers, take
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.peft.sites import site_key
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Below,
  Capacity,
  ContinualMethod,
  Delta,
  Head,
  Key,
  Output,
  PeftTransform,
)


class Specific(NamedTuple):
  """What belongs to one task: a LoRA at each upper site, and how much it counts there."""

  delta: Delta  # `{site path: LoraDelta}`
  weights: dict[str, Array]  # mu [], by site path.


class PrototypeSums(NamedTuple):
  """Sums over the examples of each class, in the features of each task."""

  AXES = {'counts': ('task', 'class'), 'sums': ('task', 'class', 'feature')}

  counts: Array  # [T, C]
  sums: Array  # [T, C, D]


def _default_peft() -> PeftTransform:
  return lora(r'attn/(q|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper(
    'CL-LoRA: continual low-rank adaptation for rehearsal-free class-incremental learning',
    '2505.24816',
  ),
  needs=('classes', 'LoRA factors'),
  carries='the shared LoRA now and before the task, a LoRA of the upper blocks per task, and '
  'prototypes of its classes',
  passes='T',
  tiny={
    '': lambda backbone, capacity: cllora(backbone, capacity, peft=lora('.', rank=2, alpha=2)),
    'all shared': lambda backbone, capacity: cllora(
      backbone,
      capacity,
      peft=lora('.', rank=2, alpha=2),
      shared=backbone.depth,
      distillation=2.0,
      detached=False,
    ),
  },
  switches=(
    Switch(
      'detached',
      False,
      "the head that is trained makes the teacher's logits, too, and gets gradients through them, "
      'so that the loss also falls by moving the old answers towards the new ones',
      'JiangpengHe/CL-LoRA, yaoyz96/low-rank-cl',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': cosine})
def cllora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  shared: int | None = None,
  distillation: float = 5.0,
  temperature: float = 2.0,
  orthogonality: float = 1e-4,
  reassigned: bool = True,
  detached: bool = True,
) -> ContinualMethod:
  """Trains one LoRA of the lower blocks on, and one of the upper blocks for each task.

  A shared site learns A B with A [d_in, r] of random orthonormal columns and fixed, and B trained
  in all tasks. A specific site learns mu A B with A, B and the number mu of the task alone; A
  starts orthonormal, B at zero, mu uniform in [0.5, 1.5]. The training head is new in each task,
  and the training softmax is over the task's own classes.

  From the second task on the loss has two more terms. Features after the last shared block (and
  the final norm) go through the training head, with B now and with B as it was before the task;
  `distillation` x the cross-entropy of both softmaxes at `temperature` holds the first to the
  second. Its gradient of column j of B is multiplied by d_out |b_j| / sum_k |b_k|, with norms of
  the old columns (gradient reassignment), so that columns that past tasks used are held most. The
  gradient of all else is not. `orthogonality` x the mean over past tasks of |cos(mu_t, mu_i)| is
  the other term: of vectors of the numbers of all sites, as in the authors' code; the paper sums
  products.

  After training, a pass over the task's data gives the mean feature of each class. At test the
  input goes once through the shared blocks and t times through those above; a class gets the
  cosine to its mean in the features of its own task, and the largest wins. Means are as they were
  when their task ended, although the shared blocks move on. Of a class that came with several
  tasks the nearest mean counts.

  The authors' code takes the step of the distillation by itself, before that of the other terms,
  with one optimizer; here both are one loss, as the paper has it.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on queries and values with rank 10 and scale 1 by default, as in the
      authors' code. Sites outside of blocks are left out.
    head: what is trained on the task's classes, and read by no prediction; `cosine()` by default.
    shared: number of lower blocks with the shared LoRA; half of them by default. With 0 nothing is
      shared or distilled; with all blocks nothing is specific.
    distillation: weight of the distillation.
    temperature: tau.
    orthogonality: weight of the cosines.
    reassigned: rescale the columns of the gradient of the distillation.
    detached: take no gradient through the teacher's logits.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site in either part, a number of
      shared blocks that the backbone does not have, negative weights, a temperature of 0 or less,
      a backbone that cannot be entered at a block, or a problem without classes.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import cllora
  >>> from pecft_jax.typing import Capacity
  >>> cllora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).passes(3)
  2.0
  """
  need_classes(capacity.problem, 'cllora')
  above(0, temperature=temperature)
  at_least(0, distillation=distillation, orthogonality=orthogonality, shared=shared)
  peft = _default_peft() if peft is None else peft
  head = cosine() if head is None else head
  block = backbone.depth // 2 if shared is None else shared
  parts = _halves(backbone, peft, block)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width

  def init(key, frozen):
    del frozen
    k_down, k_own = jax.random.split(key)
    common, own = _orthonormal(parts.lower, k_down), _fresh(parts.upper, k_own)
    up = {path: each.b for path, each in common.items()}
    params = {'shared': up, 'own': own, 'head': new_head(head, key, backbone, capacity)}
    return params, {
      'bank': jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape)), own),
      'down': {path: each.a for path, each in common.items()},
      'before': jax.tree.map(jnp.copy, up),
      'prototypes': PrototypeSums(jnp.zeros((tasks, classes)), jnp.zeros((tasks, classes, width))),
    }

  def begin_task(params, memory, env, key):
    del env
    new = {'own': _fresh(parts.upper, key), 'head': new_head(head, key, backbone, capacity)}
    return {**params, **new}, memory

  low_of = lambda up, memory, env, x, key: parts.below(
    env.frozen, _joined(memory['down'], up), x, key
  )
  features_of = lambda own, low, env, x, key: parts.features(
    env.frozen, low, _weighted(own), x, key
  )

  def forward(params, memory, env, x, key):
    low = low_of(params['shared'], memory, env, x, key)
    features = features_of(params['own'], low, env, x, key)
    logits = head.logits(params['head'], features)
    past = jnp.arange(tasks) < env.task.index
    apart = mean_cosine(memory['bank'].weights, params['own'].weights, past)
    held = distilled(params, memory, env, low, x, key) if block else jnp.zeros(logits.shape[:1])
    return Output(logits, held + orthogonality * apart, features)

  def distilled(params, memory, env, low, x, key):
    """The weighted distillation loss of each example: [B]"""
    if reassigned:  # The same values, computed once, with other gradients.
      low = low_of(_reassigned(params['shared'], memory['before']), memory, env, x, key)
    answers = lambda low: head.logits(params['head'], parts.early(env.frozen, low, x))

    def taught():
      old = answers(low_of(memory['before'], memory, env, x, None))
      old = jax.lax.stop_gradient(old) if detached else old
      return distillation * soft_cross_entropy(old, answers(low), env.task.classes, temperature)

    # The first task has no teacher, and computes none.
    return jax.lax.cond(env.task.index > 0, taught, lambda: jnp.zeros(raw(x).shape[0]))

  def consolidate(params, memory, env, batch):
    low = low_of(params['shared'], memory, env, batch.x, None)
    features = features_of(params['own'], low, env, batch.x, None)
    more = class_sums(features, batch.y, batch.valid, classes)
    counts, sums = (
      old.at[env.task.index].add(new)
      for old, new in zip(memory['prototypes'], reversed(more), strict=True)
    )
    return {**memory, 'prototypes': PrototypeSums(counts, sums)}

  def end_task(params, memory, env):
    return params, {
      **memory,
      'bank': stored(memory['bank'], params['own'], env.task.index),
      'before': jax.tree.map(jnp.copy, params['shared']),
    }

  def predict(params, memory, env, x):
    low = low_of(params['shared'], memory, env, x, None)
    counts, sums = memory['prototypes']

    def nearer(i, best):
      choose = lambda old, new: jnp.where(i == env.task.index, new, old)
      own = jax.tree.map(choose, take(memory['bank'], i), params['own'])
      # A mean and the sum that it is made of have one direction.
      pair = unit(features_of(own, low, env, x, None)), unit(sums[i]).T
      found = jnp.where(counts[i] > 0, jnp.matmul(*pair, precision='highest'), -1.0)
      return jnp.maximum(best, found)

    # A traced bound: compiled once, and costs what is filled.
    cosines = jax.lax.fori_loop(
      0, env.task.index + 1, nearer, jnp.full((raw(x).shape[0], classes), -1.0)
    )
    return only(env.task.seen, cosines)

  return from_forward(
    'cllora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    predict=predict,
    passes=lambda count: (block + (backbone.depth - block) * count) / backbone.depth,
    head=head,
    renewed=('own', 'head'),
  )


class _Halves(NamedTuple):
  """A backbone in two parts, the lower one with the shared LoRA, the upper one with that of a task.

  What comes out of the lower part is called `low`: tokens [B, T, D], or features [B, D] where there
  is no upper part, or None where there is no lower part.
  """

  lower: dict[str, Any]  # `{site path: LoraDelta of jax.ShapeDtypeStruct}`
  upper: dict[str, Any]
  below: Callable[..., Any]  # (frozen, delta, x, key) -> low
  features: Callable[..., Array]  # (frozen, low, delta, x, key) -> [B, D]
  early: Callable[..., Array]  # (frozen, low, x) -> [B, D], those of the lower part alone.


def _halves(backbone: Backbone, peft: PeftTransform, block: int) -> _Halves:
  """Splits a backbone below a block.

  Raises:
    ValueError: as `cllora` for its `peft` and `shared`.
  """
  depth = backbone.depth
  need_lora('CL-LoRA', backbone, peft)
  if block > depth:
    raise ValueError(f'expected at most {depth} shared blocks, as {backbone.name} has, got {block}')
  if 0 < block < depth and backbone.entry is None:
    raise ValueError(
      f'CL-LoRA with shared={block} of {depth} blocks needs a backbone that can be entered at a '
      f'block, and {backbone.name} cannot: choose shared=0 or shared={depth}'
    )
  own, common = (at_layers(peft, [*some]) for some in (range(block, depth), range(block)))
  lower = need_lora('CL-LoRA', backbone, common) if block else {}
  upper = need_lora('CL-LoRA', backbone, own) if block < depth else {}

  if not block:
    net, nothing = model(backbone, own), lambda *_: None
    features = lambda frozen, low, delta, x, key: net.features(frozen, delta, x, key)
    return _Halves(lower, upper, nothing, features, nothing)  # pyright: ignore[reportArgumentType]

  net, name = model(backbone, common), f'block_{block}'
  if block == depth:
    same = lambda frozen, low, *_: low
    return _Halves(lower, upper, net.features, same, same)

  def watch(site, args, out):
    del out
    return args[0] if (site.kind, site.path) == ('tokens', name) else None

  def below(frozen, delta, x, key):
    # A compiled program leaves out the blocks from there on, which nothing reads.
    return net.run(frozen, delta, x, key, watch=watch, rows=None).taps[f'tokens:{name}']

  def above_it(frozen, low, x, first, **more):
    inputs = normalised(backbone.inputs, raw(x))
    return backbone.apply(frozen, inputs, below=Below(low, first), **more).pooled

  def features(frozen, low, delta, x, key):
    return above_it(frozen, low, x, block, delta=delta, peft=own, key=key, rows=1)

  def early(frozen, low, x):
    return above_it(frozen, low, x, depth)

  return _Halves(lower, upper, below, features, early)


def _orthonormal(shapes: dict[str, Any], key: Key) -> dict[str, LoraDelta]:
  """At each site A with random orthonormal columns, and B of zeros."""

  def one(path: str, shape: LoraDelta) -> LoraDelta:
    d_in, rank = shape.a.shape
    a = jax.random.orthogonal(site_key(key, path), d_in, m=rank)
    return LoraDelta(a, jnp.zeros(shape.b.shape))

  return {path: one(path, shape) for path, shape in shapes.items()}


def _fresh(shapes: dict[str, Any], key: Key) -> Specific:
  """The start of a task, with mu uniform in [0.5, 1.5]."""
  k_delta, k_weights = jax.random.split(key)
  draw = lambda path: jax.random.uniform(site_key(k_weights, path), minval=0.5, maxval=1.5)
  return Specific(_orthonormal(shapes, k_delta), {path: draw(path) for path in shapes})


def _joined(down: dict[str, Array], up: dict[str, Array]) -> dict[str, LoraDelta]:
  return {path: LoraDelta(down[path], b) for path, b in up.items()}


def _weighted(own: Specific) -> Delta:
  """The LoRA of a task with its numbers mu."""
  times = lambda each, weight: each._replace(b=weight * each.b)
  return {path: times(each, own.weights[path]) for path, each in own.delta.items()}


def shares(before: Array) -> Array:
  """By how much the gradient of each column is rescaled: d |b_j| / sum_k |b_k|, of mean 1: [d_out]

  Args:
    before: B [r, d_out] of the task before; 1 for all columns where it is zero.

  >>> shares(jnp.array([[3.0, 0.0], [4.0, 5.0]])).tolist()
  [1.0, 1.0]
  """
  norms = jnp.sqrt(jnp.square(before).sum(0))
  total = norms.sum()
  return jnp.where(total > 0, norms.size * norms / jnp.where(total > 0, total, 1), 1.0)


def _reassigned(up: dict[str, Array], before: dict[str, Array]) -> dict[str, Array]:
  """Each B as it is, the gradients of whose columns are rescaled by the `shares` of the old one."""
  return {path: _rescaled(b, shares(before[path])) for path, b in up.items()}


@jax.custom_vjp
def _rescaled(b: Array, factors: Array) -> Array:
  """B as it is, whose columns get their gradients times factors [d_out]."""
  del factors
  return b


_rescaled.defvjp(
  lambda b, factors: (b, factors),
  lambda factors, gradient: (factors * gradient, jnp.zeros_like(factors)),
)


def soft_cross_entropy(old: Array, new: Array, known: Array, temperature: float) -> Array:
  """-sum_c p_c log q_c [B], with p and q the softmaxes of logits [B, C] over tau.

  Args:
    old: logits of p.
    new: logits of q.
    known: [C] bool, the classes that count.
    temperature: tau.
  """
  log = lambda logits: jax.nn.log_softmax(jnp.where(known, logits / temperature, -1e9))
  return -(jnp.exp(log(old)) * jnp.where(known, log(new), 0)).sum(-1)


def mean_cosine(bank: dict[str, Array], now: dict[str, Array], past: Array) -> Array:
  """The mean over past tasks of |cos(mu_i, mu_t)|, of vectors over all sites: []

  Args:
    bank: `{site path: [T]}`
    now: `{site path: []}`, of the current task.
    past: [T] bool, the slots of earlier tasks.

  >>> bank = {'q': jnp.array([3.0, 0.0]), 'v': jnp.array([4.0, 0.0])}
  >>> now = {'q': jnp.array(1.0), 'v': jnp.array(0.0)}
  >>> round(float(mean_cosine(bank, now, jnp.array([True, False]))), 3)
  0.6
  """
  if not now:
    return jnp.zeros(())
  slots = unit(jnp.stack([bank[path] for path in now], -1))  # [T, S]
  vector = unit(jnp.stack(list(now.values())))
  cosines = jnp.abs(jnp.matmul(slots, vector, precision='highest'))
  return jnp.where(past, cosines, 0).sum() / jnp.maximum(past.sum(), 1)
