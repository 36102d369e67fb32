"""LAE: learning, accumulation, ensemble (Gao et al., 2023, arXiv:2303.10070)."""

import jax
import jax.numpy as jnp
import optax

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import from_forward, model, new_head, only
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Head, Output, PeftTransform


def _default_peft() -> PeftTransform:
  return adaptformer(width=5)


@about(
  'method',
  'adapters',
  Paper(
    'A unified continual learning framework with general parameter-efficient tuning',
    '2303.10070',
  ),
  needs=('classes',),
  carries='a second copy of the delta',
  passes='2',
  tiny=lambda backbone, capacity: lae(backbone, capacity, peft=lora('.', rank=2), decay=0.9),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def lae(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  decay: float = 0.9999,
  frozen_share: float = 0.6,
) -> ContinualMethod:
  """Trains one online delta; its moving average is the offline one, and predictions use both.

  From the second task on, the online delta is frozen for the first part of a
  task, while the head is trained; then both are trained. After each update the
  offline delta moves, off <- decay x off + (1 - decay) x on. A class's score is
  the larger of its softmax shares. Until the first task ends there is the
  online delta alone. The training softmax is over the task's own classes.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: any transform: adapter, LoRA, prefix; `adaptformer(width=5)` by default.
      The authors put theirs into the first five blocks (`at_layers`), beside
      attention.
    head: what classifies features; `linear()` by default.
    decay: of the moving average, per update.
    frozen_share: share of a task's updates that leave the delta as it is (3 of 5
      epochs in the paper).

  Raises:
    ValueError: if the transform finds no site, or for shares outside [0, 1].

  >>> from pecft_jax.continual import lae
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = lae(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'lae'
  """
  if not 0 <= decay <= 1 or not 0 <= frozen_share <= 1:
    raise ValueError(f'expected decay and frozen_share in [0, 1], got {decay} and {frozen_share}')
  need_classes(capacity.problem, 'lae')
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)

  def init(key, frozen):
    delta = net.init(key, frozen)
    params = {'delta': delta, 'head': new_head(head, key, backbone, capacity)}
    return params, {'offline': jax.tree.map(jnp.copy, delta)}

  def output(delta, params, env, x, key):
    features = net.features(env.frozen, delta, x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def forward(params, memory, env, x, key):
    del memory
    return output(params['delta'], params, env, x, key)

  def learning(env):
    """Whether the delta is trained in a step."""
    return (env.task.index == 0) | (env.progress >= frozen_share)

  def project(grads, params, memory, env, batch, key):
    del params, memory, batch, key
    return {**grads, 'delta': optax.tree.scale(1.0 * learning(env), grads['delta'])}

  def observe(params, memory, env, batch, out, update, key):
    del batch, out, key
    # Momentum and weight decay also change parameters whose gradient is zero.
    choose = lambda new, old: jnp.where(learning(env), new, old)
    delta = jax.tree.map(choose, params['delta'], update.before['delta'])
    share = jnp.where(env.task.index == 0, 0.0, decay)
    # In its own dtype: parts that are kept need not be floating-point.
    mean = lambda off, on: (share * off + (1 - share) * on).astype(off.dtype)
    offline = jax.tree.map(mean, memory['offline'], delta)
    return {**params, 'delta': delta}, {'offline': offline}

  def predict(params, memory, env, x):
    def shares(delta):
      return jax.nn.softmax(only(env.task.seen, output(delta, params, env, x, None).logits))

    return only(env.task.seen, jnp.maximum(shares(params['delta']), shares(memory['offline'])))

  return from_forward(
    'lae',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    project=project,
    observe=observe,
    predict=predict,
    transforms={'delta': peft},
    head=head,
    passes=lambda tasks: 2.0,
  )
