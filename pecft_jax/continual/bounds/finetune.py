"""The bounds that every method is compared with: sequential fine-tuning and joint training."""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  as_linear,
  from_forward,
  frozen_features,
  model,
  new_head,
  on_frozen_features,
  only,
)
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_row_of_answers
from pecft_jax.recipes import Recipe
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


@about(
  'method',
  'bounds',
  tiny=lambda backbone, capacity: finetune(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def finetune(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  masked: bool = False,
) -> ContinualMethod:
  """Trains one delta and one head on task after task, and does nothing about forgetting.

  With the plain cross-entropy over all classes seen this is the field's lower
  bound; `masked` restricts the softmax to the task's own classes, a stronger
  baseline ("FT++", by name `masked_finetune`). With a LoRA it is what papers call SeqLoRA. A
  transform that trains nothing of the backbone (a linear probe) leaves its features as they are,
  and they may be cached.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: what classifies features; `linear()` by default.
    masked: leave old classes out of the training softmax.

  Raises:
    ValueError: if the transform finds no site in the backbone, or the problem's answers are not [B,
      width], as those of classification and regression are.

  >>> from pecft_jax.continual import finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = finetune(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'finetune'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'finetune')
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)
  anything = bool(jax.tree.leaves(abstract_delta(backbone, peft)))

  def query(frozen, x):
    return frozen_features(backbone, frozen, x)

  def init(key, frozen):
    return {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}, {}

  def forward(params, memory, env, x, key):
    del memory
    if anything:
      features = net.features(env.frozen, params['delta'], x, key)
    else:
      features = query(env.frozen, x)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def answers(params, memory, env, features, x):
    del memory, x
    logits = head.logits(params['head'], features)
    return only(env.task.seen, logits) if capacity.problem.classes else logits

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], as_linear(head, params['head']))

  probe: dict[str, Any] = {'query': query, 'predict': on_frozen_features(backbone, answers)}
  return from_forward(
    'finetune',
    backbone,
    capacity,
    init,
    forward,
    masked=masked,
    transforms={'delta': peft},
    head=head,
    adapted=adapted,
    **({} if anything else probe),
  )


@about(
  'method',
  'bounds',
  needs=('past data',),
  tiny=lambda backbone, capacity: joint(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def joint(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  epochs: int | None = None,
  recipe: Recipe | None = None,
) -> ContinualMethod:
  """Trains from scratch, at each task, on the data of all tasks so far: the upper bound.

  It is not a continual method, as it needs all data; after task k its accuracy
  on task k is the a*_k of the intransigence measure (Chaudhry et al., 2018,
  arXiv:1801.10112).

  It is a bound only where it is trained to the end: starting from scratch on many classes, it needs
  more passes than a method that goes on from the task before, and a rate of its own. Give it
  `epochs` and a `recipe` that were chosen on held-out data (`pecft_jax.train.tuned`). A method
  above it shows that it was stopped too early.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: what classifies features; `linear()` by default.
    epochs: its own, in the place of the run's.
    recipe: its own optimizer, in the place of the run's.

  Raises:
    ValueError: for a transform that finds no site, or fewer than one epoch.

  >>> from pecft_jax.continual import joint
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = joint(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'joint'
  """
  at_least(1, epochs=epochs)
  inner = finetune(backbone, capacity, peft=peft, head=head)

  def begin_task(params, memory, env, key):
    del params, memory
    return inner.init(key, env.frozen)

  return inner._replace(
    name='joint',
    begin_task=begin_task,
    cumulative=True,
    renewed=('delta', 'head'),
    epochs=epochs,
    recipe=recipe,
  )
