"""Training on each task by itself: the accuracy without the earlier tasks."""

import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Head, LinearHead, PeftTransform

_NEVER = -1e4  # The logit of a class of another task.


@about(
  'method',
  'bounds',
  tiny=lambda backbone, capacity: single_task(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def single_task(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
) -> ContinualMethod:
  """Trains from scratch on each task by itself, and classifies among that task's classes.

  After task j its accuracy on task j is the s_j of forward transfer, the metric `fwt`
  (Razdaibiedina et al., 2023, arXiv:2301.12314); its accuracy on other tasks has no meaning. It
  chooses among fewer classes than a class-incremental method, which chooses among all classes
  seen: compare `fwt` between methods, and read its sign only where the task is known.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: what classifies features; `linear()` by default.

  Raises:
    ValueError: as `finetune`.

  >>> from pecft_jax.continual import single_task
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = single_task(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'single_task'
  """
  inner = finetune(backbone, capacity, peft=peft, head=head, masked=True)
  plain_predict, plain_adapted = inner.predict, inner.adapted
  assert plain_adapted is not None

  def begin_task(params, memory, env, key):
    del params, memory
    return inner.init(key, env.frozen)

  def predict(params, memory, env, x):
    answers = plain_predict(params, memory, env, x)
    if not capacity.problem.classes:
      return answers
    others = env.task.seen & ~env.task.classes
    return jnp.where(others, _NEVER, answers)

  def adapted(params, memory, env):
    found = plain_adapted(params, memory, env)
    if found.head is None or not capacity.problem.classes:
      return found
    own = env.task.classes
    kernel, bias = found.head
    return found._replace(head=LinearHead(kernel * own, jnp.where(own, bias, _NEVER)))

  return inner._replace(
    name='single_task',
    begin_task=begin_task,
    predict=predict,
    adapted=adapted,
    renewed=('delta', 'head'),
  )
