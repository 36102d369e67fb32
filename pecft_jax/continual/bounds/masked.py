"""Bounds whose training softmax leaves old classes out: what any method should be above.

Old classes get no gradient, so their slots of the head stay where they were (Ahn et al., 2021,
arXiv:2003.13947, separate the softmax in this way; Boschini et al., 2022, arXiv:2206.00388, and
Zhang et al., 2023, arXiv:2303.05118, train with the local cross-entropy).
"""

from pecft_jax.about import about
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.peft.selective.select import linear_probe
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Head, PeftTransform


@about(
  'method',
  'bounds',
  tiny=lambda backbone, capacity: masked_finetune(backbone, capacity, peft=lora('.', rank=2)),
)
@recorded(defaults={'peft': lora, 'head': linear})
def masked_finetune(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
) -> ContinualMethod:
  """Trains one delta and one head on task after task, with the softmax over the task's classes.

  It is `finetune(..., masked=True)` under a name of its own: the lower bound in earnest. The plain
  softmax of `finetune` loses most by pushing old classes down, which needs no method to prevent.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: what classifies features; `linear()` by default.

  Raises:
    ValueError: as `finetune`.

  >>> from pecft_jax.continual import masked_finetune
  >>> from pecft_jax.backbones import architecture
  >>> masked_finetune(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'masked_finetune'
  """
  inner = finetune(backbone, capacity, peft=peft, head=head, masked=True)
  return inner._replace(name='masked_finetune')


@about('method', 'bounds', tiny=lambda backbone, capacity: masked_probe(backbone, capacity))
@recorded(defaults={'head': linear})
def masked_probe(
  backbone: Backbone, capacity: Capacity, *, head: Head | None = None
) -> ContinualMethod:
  """Trains a head alone, with the softmax over the task's classes, on features that stay frozen.

  The cheapest bound: features never drift, and with `Training(cache_queries=True)` they are
  computed once per task. A method that adapts the backbone and stays below it loses more by drift
  than it gains by adaptation.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.

  Raises:
    ValueError: as `finetune`.

  >>> from pecft_jax.continual import masked_probe
  >>> from pecft_jax.backbones import architecture
  >>> masked_probe(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).query is None
  False
  """
  inner = finetune(backbone, capacity, peft=linear_probe(), head=head, masked=True)
  return inner._replace(name='masked_probe')
