"""C-ADA: continual adapter (Gao et al., 2024, arXiv:2407.10281)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.adapters.slices import is_adapter, need_adapters, side_by_side, with_slot
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, adaptformer
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
Side = Literal['down', 'up', 'both']


def _default_peft() -> PeftTransform:
  return adaptformer(width=20)


class Scaling(NamedTuple):
  """What an adapter reads in the place of x: scale * x + shift."""

  AXES = {'scale': ('width',), 'shift': ('width',)}

  scale: Array  # [D], ones at init.
  shift: Array  # [D], zeros at init.


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
    'up': lambda backbone, capacity: cada(backbone, capacity, peft=adaptformer(width=4), side='up'),
  },
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def cada(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  orthogonality: float = 1.0,
  side: Side = 'both',
  masked: bool = True,
) -> ContinualMethod:
  """Extends the bottleneck of an adapter by a slice per task, apart from all frozen slices.

  A block computes FFN(h) + sum_{i<=t} f((s * h + b) W_down^i) W_up^i, all tasks at once:
  predictions need one pass and no task. The scale s and the shift b of the adapter's inputs move
  the features of pre-training to those of the data; they are trained on the first task, and frozen.
  The penalty is `orthogonality` x sum_{i<t} (|W_down^i^T W_down^t|^2 + |W_up^i W_up^t^T|^2) over
  blocks.

  The authors published no code. The scale and shift, and the two sides of the penalty with its
  weight, are those of the re-implementation that the preset `cada@cada` names.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a slice, bottleneck adapters; `adaptformer(width=20)` by default.
    head: what classifies features; `linear()` by default.
    orthogonality: weight of the penalty.
    side: of the penalty: `down`, the directions that slices read, `up`, those that they write, or
      `both`.
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
  head = linear() if head is None else head
  need_adapters('C-ADA', backbone, peft)
  net = model(backbone, peft)

  def init(key, frozen):
    delta = net.init(key, frozen)
    width = lambda each: each.down.shape[0]
    plain = lambda each: Scaling(jnp.ones(width(each)), jnp.zeros(width(each)))
    params = {
      'delta': delta,
      'scaling': jax.tree.map(plain, delta, is_leaf=is_adapter),
      'head': new_head(head, key, backbone, capacity),
    }
    bank = jax.tree.map(lambda a: jnp.zeros((capacity.tasks, *a.shape), a.dtype), delta)
    return params, {'bank': bank}

  def begin_task(params, memory, env, key):
    return {**params, 'delta': net.init(key, env.frozen)}, memory

  def slices(params, memory, env):
    return with_slot(jax.lax.stop_gradient(memory['bank']), params['delta'], env.task.index)

  def forward(params, memory, env, x, key):
    delta = scaled(side_by_side(slices(params, memory, env)), params['scaling'])
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
    delta = scaled(side_by_side(filled), params['scaling'])
    return Adapted(peft, delta, as_linear(head, params['head']))

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
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )


def scaled(delta: Any, scaling: Any) -> Any:
  """Adapters that read scale * x + shift, as adapters that read x.

  Args:
    delta: `{site path: BottleneckDelta}`
    scaling: `{site path: Scaling}`
  """

  def one(adapter: BottleneckDelta, moved: Scaling) -> BottleneckDelta:
    bias = adapter.down_bias + moved.shift @ adapter.down
    return adapter._replace(down=moved.scale[:, None] * adapter.down, down_bias=bias)

  return jax.tree.map(one, delta, scaling, is_leaf=is_adapter)


def overlap(bank: Any, delta: Any, past: Array, side: Side) -> Array:
  """The sum over sites and past slots of squared dot products between directions: []

  Args:
    bank: `{site path: BottleneckDelta}` with a leading task axis.
    delta: of the current task.
    past: [T] bool, the slots of earlier tasks.
    side: `down` for the columns of W_down [D, r], `up` for the rows of W_up [r, D], or `both`.
  """
  equations = {'down': 'tdr,ds->trs', 'up': 'trd,sd->trs'}
  sides = equations if side == 'both' else (side,)

  def one(slots: BottleneckDelta, new: BottleneckDelta) -> Array:
    def squares(name: str) -> Array:
      products = jnp.einsum(equations[name], getattr(slots, name), getattr(new, name))
      return jnp.where(past, jnp.square(products).sum((1, 2)), 0).sum()

    return sum(map(squares, sides), jnp.zeros(()))

  found = jax.tree.map(one, bank, delta, is_leaf=is_adapter)
  return sum(jax.tree.leaves(found), jnp.zeros(()))
