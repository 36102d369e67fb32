"""C-LoRA with a routing matrix: continual low-rank adaptation (Zhang et al., 2025,
arXiv:2502.17920).

One pair A [d_in, r], B [r, d_out] serves all tasks, with a matrix R [r, r] between the two:
W + A R B. What past tasks have put into R stays in its place, and a task trains what it adds.
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.sums import need_lora
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.peft.sites import site_key
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
  return lora(r'attn/(q|v)$', rank=8, alpha=8)


@about(
  'method',
  'low-rank',
  Paper('C-LoRA: continual low-rank adaptation for pre-trained models', '2502.17920'),
  needs=('LoRA factors',),
  carries='the routing matrix of past tasks, r x r per site',
  tiny=lambda backbone, capacity: routed_lora(
    backbone, capacity, peft=lora('.', rank=2, alpha=2), start=0.5
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def routed_lora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  strength: float = 0.01,
  start: float = 0.01,
  masked: bool = True,
) -> ContinualMethod:
  """Trains one LoRA for all tasks, with a matrix between its factors to which each task adds.

  The weights are W + A (R_old + R_new) B (eqs. 11 and 12). Of the old path A R_old B the value
  counts and the gradient does not, so that A, B and R_new move for what the new path does. When a
  task ends, R_new is added to R_old. The penalty is `strength` x the sum over sites of
  |R_old R_new^T|^2 (eq. 26): rows of the two are at right angles, and so are the columns of the
  paper, whose matrices are transposed. The state does not grow with tasks.

  Two methods are called C-LoRA; the other one, by Smith et al., is `clora`. No code of the authors
  was found, and the equations were read in accounts of the paper, not in the paper itself.
  Unverified are that eq. 26 takes R_old itself for the basis of past tasks, the default of
  `strength`, what R_new starts at (accounts say near zero), the sites, the rank and the training
  softmax.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; by default of rank 8 on queries and values, with a scale of 1.
    head: what classifies features; `linear()` by default.
    strength: lambda.
    start: the deviation of the entries of R_new at the start of a task, which are normal. As B
      starts at zero, R_new must not.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative strength, a
      deviation of 0 or less, or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import routed_lora
  >>> from pecft_jax.typing import Capacity
  >>> routed_lora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'routed_lora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'routed_lora')
  at_least(0, strength=strength)
  above(0, start=start)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('C-LoRA', backbone, peft)
  net = model(backbone, peft)
  ranks = {path: each.a.shape[1] for path, each in shapes.items()}

  def zeros():
    return {path: jnp.zeros((rank, rank)) for path, rank in ranks.items()}

  def init(key, frozen):
    params = {
      'delta': net.init(key, frozen),
      'route': zeros(),
      'head': new_head(head, key, backbone, capacity),
    }
    return params, {'old': zeros()}

  def begin_task(params, memory, env, key):
    del env
    fresh = lambda path, rank: start * jax.random.normal(site_key(key, path), (rank, rank))
    return {**params, 'route': {path: fresh(path, rank) for path, rank in ranks.items()}}, memory

  def forward(params, memory, env, x, key):
    old = jax.lax.stop_gradient(memory['old'])
    new = params['route']
    both = {path: routed(each, old[path], new[path]) for path, each in params['delta'].items()}
    features = net.features(env.frozen, both, x, key)
    logits = head.logits(params['head'], features)
    penalty = strength * sum(overlap(old[path], new[path]) for path in ranks)
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def end_task(params, memory, env):
    del env
    old = {path: memory['old'][path] + new for path, new in params['route'].items()}
    # What the task added now acts through the old path; acting twice would double it.
    return {**params, 'route': zeros()}, {'old': old}

  def adapted(params, memory, env):
    del env
    through = lambda path, each: each._replace(a=_product(each.a, memory['old'][path]))
    delta = {path: through(path, each) for path, each in params['delta'].items()}
    return Adapted(peft, delta, as_linear(head, params['head']))

  return from_forward(
    'routed_lora',
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
    renewed=('route',),
  )


def routed(delta: LoraDelta, old: Array, new: Array) -> LoraDelta:
  """A R_old B + A R_new B as one LoRA of rank 2 r; the first part has no gradient.

  Args:
    delta: A [d_in, r] and B [r, d_out].
    old: R_old [r, r]
    new: R_new [r, r]
  """
  held = jax.lax.stop_gradient(delta)
  a = jnp.concatenate([_product(held.a, old), _product(delta.a, new)], axis=1)
  return LoraDelta(a, jnp.concatenate([held.b, delta.b]))


def overlap(old: Array, new: Array) -> Array:
  """|R_old R_new^T|^2, zero where all rows of the two are at right angles: []"""
  return jnp.square(_product(old, new.T)).sum()


def _product(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, precision='highest')
