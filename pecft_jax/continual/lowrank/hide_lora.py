"""HiDe-LoRA: HiDe-Prompt's decomposition with LoRA in place of prompts (Wang et al., 2024,
arXiv:2407.05229).
"""

from pecft_jax.about import Paper, about
from pecft_jax.continual.prompts.hide_prompt import hide_prompt, of_heads, of_identity
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Head, PeftTransform


def _keys_and_values() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=5, alpha=1.0)


@about(
  'method',
  'low-rank',
  Paper(
    'HiDe-PET: continual learning via hierarchical decomposition of parameter-efficient tuning',
    '2407.05229',
  ),
  needs=('classes',),
  carries='a delta per task, and two Gaussians D x D per class',
  passes='2',
  tiny=lambda backbone, capacity: hide_lora(
    backbone, capacity, peft=lora('.', rank=2), epochs=1, samples=6, identity_epochs=1
  ),
)
@recorded(
  defaults={
    'peft': _keys_and_values,
    'head': linear,
    'recipe': of_heads,
    'identity_recipe': of_identity,
  }
)
def hide_lora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  blend: float = 0.1,
  contrast: float = 0.001,
  epochs: int = 30,
  samples: int = 120,
  recipe: Recipe | None = None,
  diagonal: bool = False,
  identity_epochs: int = 50,
  identity_recipe: Recipe | None = None,
) -> ContinualMethod:
  """Trains a LoRA per task; one head finds the task, and another classifies over all tasks.

  It is `hide_prompt` with another transform and other weights. Factors A and B of LoRA are blended
  with the mean of those of earlier tasks each by itself, in training and from then on; the authors'
  code blends them at the end of a task alone, so that what it keeps is not what it trained.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains; LoRA of rank 5 and scale 1 / 5 at keys and values by default.
    head: as in `hide_prompt`.
    blend: as in `hide_prompt`.
    contrast: as in `hide_prompt`.
    epochs: as in `hide_prompt`.
    samples: as in `hide_prompt`.
    recipe: as in `hide_prompt`.
    diagonal: as in `hide_prompt`.
    identity_epochs: as in `hide_prompt`.
    identity_recipe: as in `hide_prompt`.

  Raises:
    ValueError: as `hide_prompt`.

  >>> from pecft_jax.continual import hide_lora
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> hide_lora(model.backbone, Capacity(tasks=5, classes=10)).name
  'hide_lora'
  """
  need_classes(capacity.problem, 'hide_lora')
  found = hide_prompt(
    backbone,
    capacity,
    peft=_keys_and_values() if peft is None else peft,
    head=head,
    blend=blend,
    contrast=contrast,
    epochs=epochs,
    samples=samples,
    recipe=recipe,
    diagonal=diagonal,
    identity_epochs=identity_epochs,
    identity_recipe=identity_recipe,
  )
  return found._replace(name='hide_lora')
