"""C-ADA: continual adapter (Gao et al., 2024, arXiv:2407.10281)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.adapters.slices import is_adapter, need_adapters, side_by_side, with_slot
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, adaptformer, parallel_adapter
from pecft_jax.peft.compose import chain, nothing
from pecft_jax.peft.scaling.ssf import ssf
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

# The projection that the slices of different tasks are kept apart in.
Side = Literal['down', 'up']


def _default_peft() -> PeftTransform:
  return parallel_adapter(width=64, scale=1.0)


def _default_scaling() -> PeftTransform:
  return ssf(spread=0.0)


@about(
  'method',
  'adapters',
  Paper(
    'Beyond prompt learning: continual adapter for efficient rehearsal-free continual learning',
    '2407.10281',
  ),
  needs=('adapters',),
  carries='a slice of an adapter per task',
  tiny={
    '': lambda backbone, capacity: cada(backbone, capacity, peft=adaptformer(width=3)),
    'up': lambda backbone, capacity: cada(
      backbone, capacity, peft=adaptformer(width=2), scaling=nothing(), side='up'
    ),
  },
)
@recorded(defaults={'peft': _default_peft, 'scaling': _default_scaling, 'head': linear})
def cada(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  scaling: PeftTransform | None = None,
  head: Head | None = None,
  orthogonality: float = 0.1,
  side: Side = 'down',
  masked: bool = True,
) -> ContinualMethod:
  """Extends the bottleneck of an adapter by a slice per task, apart from all frozen slices.

  A block computes FFN(h) + sum_{i<=t} f(h W_down^i) W_up^i, all tasks at once: predictions need
  one pass and no task. Scales and shifts beside it move the features of pre-training to those of
  the data; they are trained on the first task, and frozen. The penalty is `orthogonality` x
  sum_{i<t} |W_down^i^T W_down^t|^2 over blocks.

  The authors published no code. The width of a slice, the weight of the penalty, and where the
  scales and shifts are, are this library's choices.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a slice, bottleneck adapters; `parallel_adapter(width=64, scale=1.0)` by default.
    scaling: what only the first task trains beside its slice; `ssf(spread=0.0)` by default,
      `linear_probe()` for nothing.
    head: what classifies features; `linear()` by default.
    orthogonality: weight of the penalty.
    side: of the penalty: `down`, the directions that slices read, or `up`, those they write.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: for a transform other than bottleneck adapters, one that finds no site, a negative
      weight, an unknown side, or a problem as in `finetune`.

  >>> from pecft_jax.continual import cada
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = cada(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'cada'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'cada')
  at_least(0, orthogonality=orthogonality)
  peft = _default_peft() if peft is None else peft
  scaling = _default_scaling() if scaling is None else scaling
  head = linear() if head is None else head
  need_adapters('C-ADA', backbone, peft)
  both = chain(scaling=scaling, slices=peft)
  net = model(backbone, both)

  def init(key, frozen):
    delta = net.init(key, frozen)
    params = {
      'delta': delta['slices'],
      'scaling': delta['scaling'],
      'head': new_head(head, key, backbone, capacity),
    }
    bank = jax.tree.map(lambda a: jnp.zeros((capacity.tasks, *a.shape), a.dtype), delta['slices'])
    return params, {'bank': bank}

  def begin_task(params, memory, env, key):
    return {**params, 'delta': net.init(key, env.frozen)['slices']}, memory

  def slices(params, memory, env):
    return with_slot(jax.lax.stop_gradient(memory['bank']), params['delta'], env.task.index)

  def forward(params, memory, env, x, key):
    delta = {
      'scaling': params['scaling'],
      'slices': side_by_side(slices(params, memory, env)),
    }
    features = net.features(env.frozen, delta, x, key)
    logits = head.logits(params['head'], features)
    past = jnp.arange(capacity.tasks) < env.task.index
    penalty = orthogonality * overlap(memory['bank'], params['delta'], past, side)
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def project(grads, params, memory, env, batch, key):
    del params, memory, batch, key
    first = 1.0 * (env.task.index == 0)
    return {**grads, 'scaling': optax.tree.scale(first, grads['scaling'])}

  def observe(params, memory, env, batch, out, update, key):
    del batch, out, key
    # Weight decay also changes parameters whose gradient is zero.
    choose = lambda new, old: jnp.where(env.task.index == 0, new, old)
    kept = jax.tree.map(choose, params['scaling'], update.before['scaling'])
    return {**params, 'scaling': kept}, memory

  def end_task(params, memory, env):
    return params, {'bank': slices(params, memory, env)}

  def adapted(params, memory, env):
    filled = jax.tree.map(lambda leaf: leaf[: int(env.task.index) + 1], memory['bank'])
    delta = {'scaling': params['scaling'], 'slices': side_by_side(filled)}
    return Adapted(both, delta, as_linear(head, params['head']))

  return from_forward(
    'cada',
    backbone,
    capacity,
    init,
    forward,
    masked=masked,
    begin_task=begin_task,
    project=project,
    observe=observe,
    end_task=end_task,
    adapted=adapted,
    transforms={'delta': peft, 'scaling': scaling},
    head=head,
    renewed=('delta',),
  )


def overlap(bank: Any, delta: Any, past: Array, side: Side) -> Array:
  """The sum over sites and past slots of squared dot products between directions: []

  Args:
    bank: `{site path: BottleneckDelta}` with a leading task axis.
    delta: of the current task.
    past: [T] bool, the slots of earlier tasks.
    side: `down` for the columns of W_down [D, r], `up` for the rows of W_up [r, D].
  """
  equation = {'down': 'tdr,ds->trs', 'up': 'trd,sd->trs'}[side]

  def one(slots: BottleneckDelta, new: BottleneckDelta) -> Array:
    products = jnp.einsum(equation, getattr(slots, side), getattr(new, side))
    return jnp.where(past, jnp.square(products).sum((1, 2)), 0).sum()

  found = jax.tree.map(one, bank, delta, is_leaf=is_adapter)
  return sum(jax.tree.leaves(found), jnp.zeros(()))
