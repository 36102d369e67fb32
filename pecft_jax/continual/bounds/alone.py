"""Training on each task alone: the accuracy without the earlier tasks."""

import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, PeftTransform

_NEVER = -1e4  # The logit of a class of another task.


@about(
  'method',
  'bounds',
  tiny=lambda backbone, capacity: alone(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora})
def alone(
  backbone: Backbone, capacity: Capacity, *, peft: PeftTransform | None = None
) -> ContinualMethod:
  """Trains from scratch on each task alone, and classifies among that task's classes.

  After task j its accuracy on task j is the s_j of forward transfer, the metric `fwt`
  (Razdaibiedina et al., 2023, arXiv:2301.12314); its accuracy on other tasks has no meaning. It
  chooses among fewer classes than a class-incremental method, which chooses among all classes
  seen: compare `fwt` between methods, and read its sign only where the task is known.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.

  Raises:
    ValueError: as `finetune`.

  >>> from pecft_jax.continual import alone
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = alone(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'alone'
  """
  inner = finetune(backbone, capacity, peft=peft, masked=True)

  def begin_task(params, memory, env, key):
    del params, memory
    fresh, memory = inner.init(key, env.frozen)
    if not capacity.problem.classes:
      return fresh, memory
    # The masked loss never changes the biases of other classes, so they are never predicted.
    bias = jnp.where(env.task.classes, fresh['head'].bias, _NEVER)
    return {**fresh, 'head': fresh['head']._replace(bias=bias)}, memory

  return inner._replace(name='alone', begin_task=begin_task, renewed=('delta', 'head'))
