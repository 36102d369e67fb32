"""SLCA: slow learner with classifier alignment (Zhang et al., 2023, arXiv:2303.05118)."""

from pecft_jax.about import Paper, about
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.continual.wrappers.aligned import aligned
from pecft_jax.heads import linear
from pecft_jax.peft.selective.select import full
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Head, PeftTransform


@about(
  'method',
  'statistics',
  Paper(
    'SLCA: slow learner with classifier alignment for continual learning on a pre-trained model',
    '2303.05118',
  ),
  needs=('classes',),
  carries='a Gaussian D x D per class',
  tiny=lambda backbone, capacity: slca(backbone, capacity, samples=6),
)
@recorded(defaults={'peft': full, 'head': linear})
def slca(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  epochs: int = 5,
  samples: int = 256,
  temperature: float | None = 0.1,
  diagonal: bool = False,
) -> ContinualMethod:
  """Fine-tunes the whole backbone on task after task, and aligns the head on Gaussian replay.

  It is `aligned(finetune(..., masked=True))`. The other half of the method is
  the slow learner: train with `grouped(recipe, {'^delta': 0.01})`, which gives
  the backbone a hundredth of the head's rate.

  Args:
    backbone: frozen; what is trained of it is the delta.
    capacity: tasks and classes of the sequence.
    peft: what is trained; every weight by default.
    head: what classifies features, and is aligned; `linear()` by default.
    epochs: as in `aligned`.
    samples: as in `aligned`.
    temperature: as in `aligned`.
    diagonal: as in `aligned`.

  Raises:
    ValueError: as `aligned`, as for a problem without classes.

  >>> from pecft_jax.continual import slca
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = slca(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'slca'
  """
  need_classes(capacity.problem, 'slca')
  peft = full() if peft is None else peft
  inner = finetune(backbone, capacity, peft=peft, head=head, masked=True)
  found = aligned(inner, epochs=epochs, samples=samples, temperature=temperature, diagonal=diagonal)
  return found._replace(name='slca')
