"""EMR-merging: elect, mask and rescale (Huang et al., 2024, arXiv:2405.17461)."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.adapters.tuna import unified
from pecft_jax.continual.core import from_forward, model, new_head, only, raw
from pecft_jax.continual.lowrank.sums import stored
from pecft_jax.continual.merging.products import need_common
from pecft_jax.continual.prompts.specialists import own_first
from pecft_jax.continual.prompts.tasks import task_or
from pecft_jax.heads import linear
from pecft_jax.peft.compose import take
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Given,
  Head,
  Output,
  PeftTransform,
)


@about(
  'method',
  'merging',
  Paper('EMR-Merging: tuning-free high-performance model merging', '2405.17461'),
  needs=('classes', 'task identity', 'trained delta', 'common places'),
  carries='a delta per task, from which the merge, masks and scales are made',
  passes='T',
  tiny=lambda backbone, capacity: emr(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def emr(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
) -> ContinualMethod:
  """Merges the deltas of all tasks into one vector, with a mask and a scale for each task.

  Each task is trained from the start. With tau_t its change, the elected vector u has in
  each entry the sign of sum_t tau_t and the largest magnitude with that sign. Task t has the mask
  M_t = (tau_t u > 0) and the scale s_t = sum |tau_t| / sum |M_t u|, and is answered by
  start + s_t M_t u.

  It is made for tasks that are known at test (`task_incremental` scenarios). Otherwise the class
  with the largest logit in its task's pass wins; logits of different tasks were never trained
  against each other. Either takes a pass for each task seen. The head is trained with
  the softmax over the task's own classes, and is not merged.

  A new task may change the sign of any entry, so the deltas of all tasks are carried; one u, T
  bits per entry and T scales are all that answers need.

  Sums of s_t are over all entries, as in the paper; the authors' code for ViTs with CLIP adds the
  means of the tensors.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained; `lora()` by default. Of LoRA the factors are merged.
    head: what classifies features; `linear()` by default.

  Raises:
    ValueError: if the transform trains nothing, or is calibrated; for a problem without classes.

  >>> from pecft_jax.continual import emr
  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> emr(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'emr'
  """
  need_classes(capacity.problem, 'emr')
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  need_common('emr', backbone, peft)
  net = model(backbone, peft)
  tasks, classes = capacity.tasks, capacity.classes

  def init(key, frozen):
    delta = net.init(key, frozen)
    bank = jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), split_kept(delta)[0])
    memory = {
      'base': jax.tree.map(jnp.copy, delta),
      'bank': bank,
      'own': jnp.zeros((tasks, classes), bool),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def begin_task(params, memory, env, key):
    del key
    own = memory['own'].at[env.task.index].set(env.task.classes)
    return {**params, 'delta': jax.tree.map(jnp.copy, memory['base'])}, {**memory, 'own': own}

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def bank_of(params, memory, env):
    """The deltas of all tasks, with that of the current one."""
    return stored(memory['bank'], split_kept(params['delta'])[0], env.task.index)

  def end_task(params, memory, env):
    return params, {**memory, 'bank': bank_of(params, memory, env)}

  def predict(params, memory, env, x):
    trained, kept = split_kept(memory['base'])
    vectors = jax.tree.map(jnp.subtract, bank_of(params, memory, env), trained)
    elected, masks, scales = emr_parts(vectors, jnp.arange(tasks) <= env.task.index)

    def logits_of(t):
      mine = lambda base, u, mask: base + scales[t] * mask * u
      moved = jax.tree.map(mine, trained, elected, take(masks, t))
      return head.logits(params['head'], net.features(env.frozen, combine(moved, kept), x))

    rows = raw(x).shape[0]
    # A traced bound: compiled once, and costs what is filled.
    each = jax.lax.fori_loop(
      0,
      env.task.index + 1,
      lambda t, each: each.at[t].set(logits_of(t)),
      jnp.zeros((tasks, rows, classes)),
    )
    if isinstance(x, Given) and x.task is not None:
      task = task_or(x, env, jnp.broadcast_to(env.task.index, (rows,)))
      return only(env.task.seen, own_first(each, task, memory['own'], env.task.home))
    return only(env.task.seen, jnp.where(memory['own'][:, None], each, -jnp.inf).max(0))

  return from_forward(
    'emr',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    predict=predict,
    passes=float,
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )


def emr_parts(bank: Any, there: Array) -> tuple[Any, Any, Array]:
  """The elected vector of task vectors, their masks, and their scales.

  Args:
    bank: a tree of [T, ...]
    there: [T] bool, the tasks that take part.

  Returns:
    A tree like one task vector, a tree of bools like the bank, and [T].

  >>> bank = {'w': jnp.array([[1.0, -4.0], [3.0, 2.0]])}
  >>> elected, masks, scales = emr_parts(bank, jnp.array([True, True]))
  >>> elected['w'].tolist(), masks['w'].tolist(), [round(float(s), 2) for s in scales]
  ([3.0, -4.0], [[True, True], [True, False]], [0.71, 1.67])
  """
  elected = unified(bank, there)
  masks = jax.tree.map(lambda slots, u: slots * u > 0, bank, elected)
  total = lambda tree: sum(
    (jnp.abs(leaf).sum(range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)),
    jnp.zeros(there.shape),
  )
  after = total(jax.tree.map(jnp.multiply, masks, elected))
  return elected, masks, jnp.where(after > 0, total(bank) / jnp.where(after > 0, after, 1), 1)
