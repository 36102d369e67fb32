"""LoDA: task-driven subspace decomposition (He et al., 2026, arXiv:2603.00191).

Each task learns W + g A_G B_G + i A_I B_I with two fixed down-projections: A_G spans what inputs of
all tasks have most of, A_I what the new ones have most of against the old ones.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import as_linear, from_forward, mean_of_valid, model, new_head
from pecft_jax.continual.lowrank.inflora import second_moments
from pecft_jax.continual.lowrank.sums import added, need_lora, products
from pecft_jax.heads import cosine
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import need_classes, need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Gather,
  Head,
  Key,
  Once,
  Output,
  Params,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(q|k|v)$', rank=32, alpha=32)


def _default_head() -> Head:
  return cosine(scale=20.0, learned=False)


@about(
  'method',
  'low-rank',
  Paper(
    'Task-driven subspace decomposition for knowledge sharing and isolation in LoRA-based '
    'continual learning',
    '2603.00191',
  ),
  needs=('LoRA factors', 'classes'),
  carries='the sum of past products, d_in x d_out per site, and second moments, d_in x d_in',
  tiny=lambda backbone, capacity: loda(backbone, capacity, peft=lora('.', rank=2, alpha=2)),
  switches=(
    Switch(
      'twice',
      True,
      'the inputs of a task count twice for later ones, as they are before its update is merged '
      'and as they are afterwards',
      'HHHLF/LoDA_ICML2026',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': _default_head})
def loda(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  general: float = 0.25,
  isolated: float = 0.5,
  balance: float = 3.0,
  radius: float = 0.3,
  twice: bool = False,
) -> ContinualMethod:
  """Learns each task in shared and in task-specific directions, and recalibrates the shared ones.

  With M the mean of x x^T over a task's inputs of a site, and M_past the sum of those of old tasks:
  A_G is the r leading eigenvectors of M + M_past, A_I an orthonormal basis of the r leading
  generalised eigenvectors of (M, M_past), both divided by sqrt(3). Up-projections are trained; in
  the first task, which has no A_I, A_G is trained, too. Afterwards a pass with the new weights
  gives M again. Row k of B_G is multiplied by 1 - eta_k, eta_k = p / (p + `balance` x c), where p
  and c are what M_past and M hold along a_k, and all products are added to the weights.

  Updates are aligned between classes: those of a batch are split in two random halves, the factors
  are moved down the normalised gradient of one half by a random share of `radius`, and the gradient
  there is that of the other half; both ways are added up. That costs four passes per update. The
  authors' code takes two updates, one after the other, and moves queries, keys and values of a
  block as one matrix. A margin, which it has on some data sets, and the alignment of classifiers,
  which its settings switch off, are left out (`aligned`). The training softmax is over the task's
  own classes.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`, whose rank is that of both; by default of rank 32 with a scale of 1 on
      queries, keys and values, as in the authors' code for CIFAR-100.
    head: what classifies features; by default by cosines times 20.
    general: g.
    isolated: i.
    balance: gamma; higher for a larger part of the new update.
    radius: rho; 0 trains on whole batches without alignment.
    twice: count the inputs of a task twice for later ones.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, negative values, a balance
      of 0, a problem without classes, or one as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import loda
  >>> from pecft_jax.typing import Capacity
  >>> loda(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'loda'
  """
  need_classes(capacity.problem, 'loda')
  need_row_of_answers(capacity.problem, capacity.classes, 'loda')
  at_least(0, general=general, isolated=isolated, radius=radius)
  above(0, balance=balance)
  peft = _default_peft() if peft is None else peft
  head = _default_head() if head is None else head
  shapes = need_lora('LoDA', backbone, peft)
  whole = added(shapes)
  alone, both = model(backbone, whole), model(backbone, chain(past=whole, now=peft))
  zeros = functools.partial(_zeros, shapes)

  def init(key, frozen):
    del frozen
    return {'factors': _untrained(shapes), 'head': new_head(head, key, backbone, capacity)}, {
      'past': zeros('in', 'out'),
      'shared': zeros('in', 'rank'),
      'own': zeros('in', 'rank'),
      'inputs': zeros('in', 'in'),
      **_nothing_gathered(shapes),
    }

  def now(factors, memory, env) -> dict[str, LoraDelta]:
    ups = lambda p: (general * factors['general'][p], isolated * factors['isolated'][p])
    pairs, join = _downs(factors, memory, env.task.index == 0), jnp.concatenate
    return {path: LoraDelta(join(pairs[path], axis=1), join(ups(path))) for path in shapes}

  def run(params, memory, env, x, key, watch=None, rows: int | None = 1):
    past = jax.lax.stop_gradient(memory['past'])
    delta = {'past': past, 'now': now(params['factors'], memory, env)}
    return both.run(env.frozen, delta, x, key, watch=watch, rows=rows)

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def loss(params, memory, env, batch, key):
    allowed = env.task.classes if env.among is None else env.task.classes & env.among

    def of(params, rows):
      out = forward(params, memory, env, batch.x, key)
      return mean_of_valid(capacity.problem.losses(out.logits, batch.y, allowed), rows), out

    if key is None or not radius:
      return of(params, batch.valid)
    return across_halves(of, params, 'factors', key, batch, capacity.classes, radius)

  def gather(params, memory, env, batch):
    watch = second_moments(shapes, batch.valid)
    taps = run(params, memory, env, batch.x, None, watch, rows=None).taps
    return _gathered(memory, taps, batch.valid)

  def gather_merged(params, memory, env, batch):
    del params  # What they add is in the sum already.
    watch = second_moments(shapes, batch.valid)
    taps = alone.run(env.frozen, memory['past'], batch.x, watch=watch, rows=None).taps
    return _gathered(memory, taps, batch.valid)

  def design(params, memory, env, key):
    del key
    found, old, first = _means(memory), memory['inputs'], env.task.index == 0
    rank = {path: each.a.shape[1] for path, each in shapes.items()}
    own = lambda p: jnp.where(first, 0, new_against_old(found[p], old[p], rank[p]))
    return params, {
      **memory,
      'shared': {p: leading_directions(found[p] + old[p], rank[p]) for p in shapes},
      'own': {p: own(p) for p in shapes},
      **_nothing_gathered(shapes),
    }

  def merge(params, memory, env, key):
    del key
    found, old, factors = _means(memory), memory['inputs'], params['factors']
    less = {
      path: kept_share(a, old[path], found[path], balance)[:, None] * factors['general'][path]
      for path, (a, _) in _downs(factors, memory, env.task.index == 0).items()
    }
    new = products(peft, now({**factors, 'general': less}, memory, env))
    return params, {
      **memory,
      'past': jax.tree.map(jnp.add, memory['past'], new),
      'inputs': jax.tree.map(jnp.add, old, found) if twice else old,
      **_nothing_gathered(shapes),
    }

  def end_task(params, memory, env):
    del env
    inputs = jax.tree.map(jnp.add, memory['inputs'], _means(memory))
    memory = {**memory, 'inputs': inputs, **_nothing_gathered(shapes)}
    # The products now act through the sum; acting twice would double them.
    return {**params, 'factors': _untrained(shapes)}, memory

  def adapted(params, memory, env):
    del env
    return Adapted(whole, memory['past'], as_linear(head, params['head']))

  return from_forward(
    'loda',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    loss=loss,
    prepare=gather,
    consolidate=gather,
    end_task=end_task,
    phases=(
      Once('design', design, after='prepare'),
      Once('merge', merge, after='consolidate'),
      Gather('merged inputs', gather_merged, after='merge'),
    ),
    adapted=adapted,
    head=head,
    renewed=('factors',),
  )


def across_halves(
  of: Callable[[Params, Array], tuple[Array, Output]],
  params: Params,
  trained: str,
  key: Key,
  batch: Batch,
  classes: int,
  radius: float,
) -> tuple[Array, Output]:
  """The loss of each half of a batch where the gradient of the other half leads, added up.

  Args:
    of: `(params, rows) -> (mean loss of these rows, output of the batch)`.
    params: of the method.
    trained: the entry that is moved; the rest stays where it is.
    key: consumed.
    batch: split by `first_half`.
    classes: C
    radius: the longest way that a leaf is moved.

  Returns:
    The loss [], and the output of each example where its own half was met.
  """
  k_half, k_far = jax.random.split(key)
  first = first_half(k_half, batch.y, batch.valid, classes)
  halves = (first, batch.valid & ~first)
  far = radius * jax.random.uniform(k_far)
  held = jax.lax.stop_gradient(params)

  def led_by(rows: Array) -> Params:
    down = jax.grad(lambda own: of({**held, trained: own}, rows)[0])(held[trained])
    moved = lambda leaf, g: leaf - jax.lax.stop_gradient(far * unit_norm(g))
    return {**params, trained: jax.tree.map(moved, params[trained], down)}

  (one, there), (two, here) = (of(led_by(b), a) for a, b in (halves, halves[::-1]))
  pick = lambda a, b: jnp.where(first.reshape(-1, *[1] * (a.ndim - 1)), a, b)
  return one + two, jax.tree.map(pick, there, here)


def leading_directions(moments: Array, rank: int) -> Array:
  """The r leading eigenvectors over sqrt(3): [d, r]"""
  _, vectors = jnp.linalg.eigh((moments + moments.T) / 2)  # The smallest first.
  return vectors[:, ::-1][:, :rank] / math.sqrt(3)


def new_against_old(new: Array, old: Array, rank: int) -> Array:
  """A basis of the directions u with the highest u^T M u / u^T M_past u, over sqrt(3): [d, r]

  Args:
    new: M [d, d], second moments.
    old: M_past [d, d]. 1e-5 of its largest eigenvalue is added to all of them; the authors' code
      adds as much as a Cholesky decomposition needs.
    rank: r
  """
  # Those of (M, M + M_past) are the same, and float32 bears that division better.
  values, vectors = jnp.linalg.eigh((old + old.T + new + new.T) / 2)
  floor = 1e-5 * jnp.linalg.eigvalsh(old)[-1] + 1e-12
  # Where no task has inputs there is rounding, which must not be divided by next to nothing.
  there = values > 1e-6 * values[-1]
  white = vectors * jnp.where(there, jax.lax.rsqrt(jnp.maximum(values, 0) + floor), 0)
  _, found = jnp.linalg.eigh(_product(white.T, _product((new + new.T) / 2, white)))
  return jnp.linalg.qr(_product(white, found[:, ::-1][:, :rank]))[0] / math.sqrt(3)


def kept_share(directions: Array, old: Array, new: Array, balance: float) -> Array:
  """1 - p / (p + balance x c), with p = a^T M_past a and c = a^T M a for each column a: [r]"""
  along = lambda m: jnp.maximum(jnp.einsum('ir,ir->r', directions, _product(m, directions)), 0)
  past = along(old)
  return 1 - past / (past + balance * along(new) + 1e-12)


def first_half(key: Key, y: Array, valid: Array, classes: int) -> Array:
  """Whether an example's class is in the first of two random halves of those of a batch: [B] bool

  The first half has n // 2 of n classes, and at least one.

  Args:
    key: consumed.
    y: [B] int32
    valid: [B] bool
    classes: C
  """
  there = jnp.zeros(classes, bool).at[y].max(valid)
  drawn = jnp.where(there, jax.random.uniform(key, (classes,)), jnp.inf)
  place = jnp.argsort(jnp.argsort(drawn))
  return (place < jnp.maximum(there.sum() // 2, 1))[y] & valid


def unit_norm(leaf: Array) -> Array:
  """An array divided by its norm; zero stays zero."""
  return leaf / (jnp.linalg.norm(leaf) + 1e-12)


def _zeros(shapes: Mapping[str, LoraDelta], rows: str, columns: str) -> dict[str, Array]:
  """Zeros for each site, with axes among `in`, `rank` and `out`."""

  def sizes(each: LoraDelta) -> dict[str, int]:
    return {'in': each.a.shape[0], 'rank': each.a.shape[1], 'out': each.b.shape[1]}

  return {p: jnp.zeros((sizes(each)[rows], sizes(each)[columns])) for p, each in shapes.items()}


def _untrained(shapes: Mapping[str, LoraDelta]) -> dict[str, dict[str, Array]]:
  ups = {name: _zeros(shapes, 'rank', 'out') for name in ('general', 'isolated')}
  return {**ups, 'turn': _zeros(shapes, 'in', 'rank')}


def _nothing_gathered(shapes: Mapping[str, LoraDelta]) -> dict[str, Any]:
  return {'moments': _zeros(shapes, 'in', 'in'), 'examples': jnp.zeros(())}


def _downs(factors: Params, memory: Any, first: Array) -> dict[str, tuple[Array, Array]]:
  """A_G and A_I of each site; in the first task A_G is trained, too."""
  shared, own = jax.lax.stop_gradient((memory['shared'], memory['own']))
  turned = lambda p: shared[p] + jnp.where(first, factors['turn'][p], 0)
  return {path: (turned(path), own[path]) for path in shared}


def _gathered(memory: Mapping[str, Any], taps: Mapping[str, Array], valid: Array) -> dict[str, Any]:
  """A memory with the second moments of one batch more."""
  moments = {path: old + taps[f'linear:{path}'] for path, old in memory['moments'].items()}
  return {**memory, 'moments': moments, 'examples': memory['examples'] + valid.sum()}


def _means(memory: Mapping[str, Any]) -> dict[str, Array]:
  """The moments of an example; all have as many tokens, so that ratios are those of token means."""
  count = jnp.maximum(memory['examples'], 1)
  return {path: moments / count for path, moments in memory['moments'].items()}


def _product(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, precision='highest')
