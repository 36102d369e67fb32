"""SLAO: a single LoRA with orthogonal initialisation and merging (Qiao and Mahdavi, 2025,
arXiv:2512.23017).
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.sums import is_lora, need_lora
from pecft_jax.heads import linear
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


@about(
  'method',
  'low-rank',
  Paper(
    'Merge before forget: a single LoRA continual learning via continual merging', '2512.23017'
  ),
  needs=('LoRA factors',),
  carries='the merged LoRA, and the last one as it was trained',
  tiny=lambda backbone, capacity: slao(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def slao(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  power: float = 0.5,
  masked: bool = True,
) -> ContinualMethod:
  """Trains one LoRA on from task to task, and predicts with a running mean of it.

  Task i, counted from 1, starts with B as it was trained last, and with A = Q of the QR
  decomposition of the last A, whose columns are orthonormal and span the same space. Signs are
  such that R has a positive diagonal. Afterwards the merged A is that of the task, and the merged B
  moves towards that of the task by lambda_i = i^-power. The merged LoRA predicts; the one that was
  trained is where the next task starts. In the paper a language model is trained, which has no
  head; here the head is trained on the features of the LoRA of its task.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; `lora()` by default.
    head: what classifies features; `linear()` by default.
    power: 1/2 in the paper; with 1 the merged B is the mean over tasks, with 0 the last one.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative power, or a
      problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import slao
  >>> from pecft_jax.typing import Capacity
  >>> slao(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'slao'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'slao')
  at_least(0, power=power)
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  need_lora('SLAO', backbone, peft)
  net = model(backbone, peft)

  def init(key, frozen):
    delta = net.init(key, frozen)
    params = {'delta': delta, 'head': new_head(head, key, backbone, capacity)}
    zeros = lambda: jax.tree.map(jnp.zeros_like, delta)
    return params, {'merged': zeros(), 'last': zeros()}

  def begin_task(params, memory, env, key):
    first = env.task.index == 0
    go_on = lambda last: LoraDelta(orthonormal(last.a), last.b)
    again = jax.tree.map(go_on, memory['last'], is_leaf=is_lora)
    choose = lambda fresh, old: jnp.where(first, fresh, old)
    return {**params, 'delta': jax.tree.map(choose, net.init(key, env.frozen), again)}, memory

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def end_task(params, memory, env):
    share = (env.task.index + 1.0) ** -power
    merge = lambda old, new: LoraDelta(new.a, old.b + share * (new.b - old.b))
    merged = jax.tree.map(merge, memory['merged'], params['delta'], is_leaf=is_lora)
    return {**params, 'delta': merged}, {
      'merged': jax.tree.map(jnp.copy, merged),
      'last': params['delta'],
    }

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], as_linear(head, params['head']))

  return from_forward(
    'slao',
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


def orthonormal(a: Array) -> Array:
  """Q of A = Q R with a positive diagonal of R: [d_in, r].

  Args:
    a: A [d_in, r], of full rank; else some columns of Q are arbitrary.
  """
  q, r = jnp.linalg.qr(a)
  return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
