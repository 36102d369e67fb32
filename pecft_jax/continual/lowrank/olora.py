"""O-LoRA: orthogonal low-rank adaptation (Wang et al., 2023, arXiv:2310.14152)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  as_linear,
  from_forward,
  model,
  new_head,
)
from pecft_jax.continual.lowrank.sums import is_lora, joined, need_lora, summed
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain, take
from pecft_jax.peft.lowrank.lora import LoraDelta, lora, rslora
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


@about(
  'method',
  'low-rank',
  Paper('Orthogonal subspace learning for language model continual learning', '2310.14152'),
  needs=('LoRA factors',),
  carries='the LoRA factors of each task',
  tiny={
    '': lambda backbone, capacity: olora(backbone, capacity, peft=lora('.', rank=2)),
    'rslora': lambda backbone, capacity: olora(
      backbone, capacity, peft=rslora('.', rank=2), decay=0.1
    ),
  },
)
@recorded(defaults={'peft': lora, 'head': linear})
def olora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  orthogonality: float = 0.5,
  decay: float = 0.0,
  squared: bool = False,
  masked: bool = True,
) -> ContinualMethod:
  """Learns each task in a new LoRA, kept orthogonal to those of all earlier tasks.

  W + sum_i A_i B_i over past and current task; past factors are frozen. The
  penalty is `orthogonality` x sum_{i<t} sum |A_i^T A_t| over the
  down-projections, as in the authors' code (sums of absolute values; the paper
  squares them), plus `decay` x the sum of the norms of the new factors.

  Past products are summed into the weights inside the step, so its cost is
  constant over tasks. With `orthogonality=0` it is IncLoRA: a new LoRA for each task, and the sum
  of all.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`, with `at_layers` if wanted; `lora()` by default, whose scale is 2. The
      authors' code has alpha 32 with its rank 8, a scale of 4, and a dropout of 0.1:
      `lora(rank=8, alpha=32, dropout=0.1)`, as in the preset `olora@olora`.
    head: what classifies features; `linear()` by default.
    orthogonality: lambda_1.
    decay: lambda_2.
    squared: penalise squares.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: if the transform is no LoRA, or finds no site; for negative weights; for a problem
      as in `finetune`.

  >>> from pecft_jax.continual import olora
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = olora(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'olora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'olora')
  at_least(0, orthogonality=orthogonality, decay=decay)
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  need_lora('O-LoRA', backbone, peft)
  current = model(backbone, peft)
  both = model(backbone, chain(past=summed(peft), now=peft))

  def init(key, frozen):
    delta = current.init(key, frozen)
    bank = jax.tree.map(lambda a: jnp.zeros((capacity.tasks, *a.shape)), delta)
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, {'bank': bank}

  def begin_task(params, memory, env, key):
    return {**params, 'delta': current.init(key, env.frozen)}, memory

  def forward(params, memory, env, x, key):
    delta = {'past': jax.lax.stop_gradient(memory['bank']), 'now': params['delta']}
    features = both.features(env.frozen, delta, x, key)
    logits = head.logits(params['head'], features)
    penalty = orthogonality * _overlap(memory['bank'], params['delta'], squared)
    if decay:
      # The small number keeps the gradient finite at B = 0.
      norm = lambda a: jnp.sqrt(jnp.square(a).sum() + 1e-12)
      penalty += decay * sum(norm(a) for a in jax.tree.leaves(params['delta']))
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def end_task(params, memory, env):
    put = lambda bank, new: bank.at[env.task.index].set(new)
    bank = jax.tree.map(put, memory['bank'], params['delta'])
    # The task's delta now acts through its slot; acting twice would double it.
    return {**params, 'delta': jax.tree.map(jnp.zeros_like, params['delta'])}, {'bank': bank}

  def adapted(params, memory, env):
    filled = take(memory['bank'], jnp.arange(int(env.task.index) + 1))
    delta = jax.tree.map(joined, filled, is_leaf=is_lora)
    return Adapted(peft, delta, as_linear(head, params['head']))

  return from_forward(
    'olora',
    backbone,
    capacity,
    init,
    forward,
    masked=masked,
    begin_task=begin_task,
    end_task=end_task,
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )


def _overlap(bank: LoraDelta, delta: LoraDelta, squared: bool) -> Array:
  """Sum over sites and past slots of |A_i^T A_t|: []"""

  def one(slots: LoraDelta, new: LoraDelta) -> Array:
    products = jnp.einsum('tdr,ds->trs', slots.a, new.a)
    return (jnp.square(products) if squared else jnp.abs(products)).sum()

  return sum(jax.tree.leaves(jax.tree.map(one, bank, delta, is_leaf=is_lora)), jnp.zeros(()))
