"""SD-LoRA: scalable decoupled low-rank adaptation (Wu et al., 2025, arXiv:2501.13198).

W + sum_i alpha_i D_i, with D_i the direction that task i learned, of norm 1 and fixed, and
alpha_i a number that all later tasks train.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import above
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.sums import is_lora, joined, need_lora, stored, summed
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain, take
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import need_row_of_answers
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


def _default_peft() -> PeftTransform:
  return lora(r'attn/(q|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper('SD-LoRA: scalable decoupled low-rank adaptation', '2501.13198'),
  needs=('LoRA factors',),
  carries='the LoRA factors and the magnitude of each task',
  tiny={
    '': lambda backbone, capacity: sdlora(backbone, capacity, peft=lora('.', rank=2, alpha=2)),
    'jumping': lambda backbone, capacity: sdlora(
      backbone, capacity, peft=lora('.', rank=3, alpha=3), ranks=((1, 2),), handed=False
    ),
  },
  switches=(
    Switch(
      'handed',
      False,
      'the magnitude learnt with a direction is not handed to it when it is kept: all past ones '
      'start again, and the weights jump at each task',
      'WuYichen-97/SD-Lora-CL',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def sdlora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  start: float = 1.0,
  ranks: Sequence[tuple[int, int]] = (),
  of_product: bool = False,
  handed: bool = True,
) -> ContinualMethod:
  """Learns a new direction at each task, and the magnitudes of all directions so far.

  While a task trains, its own direction is A_t B_t as it is, with the magnitude alpha_t; past
  directions are fixed. When the task ends, A_t B_t is divided by its norm |A_t|_F |B_t|_F, and
  alpha_t is multiplied by it, so that the weights stay as they were trained. All sites share a
  magnitude, as in the authors' code; so what is divided by is the mean norm over the sites. The
  code instead divides each site by its own norm and starts all past magnitudes again
  (`handed=False`). The training softmax is over the task's own classes.

  The paper's variant RR is `ranks`. Its variant KD drops a direction that past ones span; it would
  save nothing where shapes are constant, and is left out.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on queries and values with rank 10 and scale 1 by default, as in the
      authors' code.
    head: what classifies features; `linear()` by default.
    start: of a magnitude; 1 in the paper, 0.8 in the code.
    ranks: pairs of a task, counted from 0, and the rank from that task on: `((4, 8), (8, 6))` in
      the paper's RR. The factors keep their shape, and further columns are zero.
    of_product: divide by |A_t B_t|_F.
    handed: hand the magnitude learnt with a direction to it.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a magnitude of 0 or less,
      ranks below 1 or not in the order of their tasks, or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import sdlora
  >>> from pecft_jax.typing import Capacity
  >>> sdlora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'sdlora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'sdlora')
  above(0, start=start)
  _check_ranks(ranks)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('SD-LoRA', backbone, peft)
  current = model(backbone, peft)
  both = model(backbone, chain(past=summed(peft), now=peft))
  norms = lambda delta: {path: _norm(each, of_product) for path, each in delta.items()}

  def init(key, frozen):
    delta = current.init(key, frozen)
    params = {
      'delta': delta,
      'magnitude': jnp.full(capacity.tasks, start, jnp.float32),
      'head': new_head(head, key, backbone, capacity),
    }
    bank = jax.tree.map(lambda a: jnp.zeros((capacity.tasks, *a.shape)), delta)
    return params, {'bank': bank, 'scale': {path: jnp.zeros(capacity.tasks) for path in shapes}}

  def begin_task(params, memory, env, key):
    t, scale = env.task.index, memory['scale']
    rank = jnp.asarray([_rank_at(i, ranks) for i in range(capacity.tasks)])[t]
    fresh = current.init(key, env.frozen)
    fresh = {
      path: each._replace(a=each.a * (jnp.arange(each.a.shape[1]) < rank))
      for path, each in fresh.items()
    }
    if handed:
      magnitude = params['magnitude'].at[t].set(start)
    else:
      before = jnp.maximum(t - 1, 0)
      last = norms(take(memory['bank'], before))
      scale = {path: each.at[before].set(_inverse(last[path])) for path, each in scale.items()}
      magnitude = jnp.full(capacity.tasks, start, jnp.float32)
    return {**params, 'delta': fresh, 'magnitude': magnitude}, {**memory, 'scale': scale}

  def past(params, memory):
    """The bank, each slot times its magnitude."""
    weights = {path: params['magnitude'] * scale for path, scale in memory['scale'].items()}
    times = lambda slots, w: slots._replace(b=slots.b * w[:, None, None])
    return {path: times(slots, weights[path]) for path, slots in memory['bank'].items()}

  def forward(params, memory, env, x, key):
    alpha = params['magnitude'][env.task.index]
    now = {path: each._replace(b=alpha * each.b) for path, each in params['delta'].items()}
    features = both.features(env.frozen, {'past': past(params, memory), 'now': now}, x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def end_task(params, memory, env):
    t, delta, magnitude = env.task.index, params['delta'], params['magnitude']
    bank = stored(memory['bank'], delta, t)
    mean = jnp.stack(list(norms(delta).values())).mean() if handed else jnp.ones(())
    scale = {path: each.at[t].set(_inverse(mean)) for path, each in memory['scale'].items()}
    params = {
      **params,
      'magnitude': magnitude.at[t].multiply(mean),
      # The direction now acts through its slot; acting twice would double it.
      'delta': jax.tree.map(jnp.zeros_like, delta),
    }
    return params, {'bank': bank, 'scale': scale}

  def adapted(params, memory, env):
    filled = take(past(params, memory), jnp.arange(int(env.task.index) + 1))
    delta = jax.tree.map(joined, filled, is_leaf=is_lora)
    return Adapted(peft, delta, as_linear(head, params['head']))

  return from_forward(
    'sdlora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
    renewed=('delta', 'magnitude'),
  )


def _norm(delta: LoraDelta, of_product: bool) -> Array:
  """|A|_F |B|_F, or |A B|_F: []"""
  if of_product:
    # The squared norm of A B is the trace of (A^T A) (B B^T), which is r x r.
    product = lambda a, b: jnp.matmul(a, b, precision='highest')
    square = (product(delta.a.T, delta.a) * product(delta.b, delta.b.T)).sum()
    return jnp.sqrt(jnp.maximum(square, 0))
  return jnp.sqrt(jnp.square(delta.a).sum() * jnp.square(delta.b).sum())


def _inverse(norm: Array) -> Array:
  """1 / norm; 0 for the direction that was never trained, whose norm is 0."""
  return jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)


def _rank_at(task: int, ranks: Sequence[tuple[int, int]]) -> int:
  """The rank in a task; one that is no limit where nothing is said."""
  return ([2**30] + [rank for first, rank in ranks if first <= task])[-1]


def _check_ranks(ranks: Sequence[tuple[int, int]]) -> None:
  tasks = [task for task, _ in ranks]
  if tasks != sorted(set(tasks)) or any(rank < 1 for _, rank in ranks):
    raise ValueError(
      f'expected pairs (task, rank) in the order of their tasks, with ranks from 1, got {ranks}'
    )
