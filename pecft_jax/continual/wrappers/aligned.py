"""Classifier alignment: the head is trained again on features drawn from a Gaussian per class.

SLCA (Zhang et al., 2023, arXiv:2303.05118) aligns after full fine-tuning with a slow rate for the
backbone; HiDe-Prompt (arXiv:2310.07234) and others align after theirs.
"""

from pecft_jax.about import Paper, about
from pecft_jax.continual.memory import gaussians as normals
from pecft_jax.continual.memory.alignment import alignment
from pecft_jax.continual.wrappers.wrap import begun, check_forgets, consolidated, wrap
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import ContinualMethod


def _default_recipe() -> Recipe:
  return sgd(0.01, weight_decay=5e-4)


@about(
  'wrapper',
  'wrappers',
  Paper(
    'SLCA: slow learner with classifier alignment for continual learning on a pre-trained model',
    '2303.05118',
  ),
  needs=('classes',),
  carries='a Gaussian D x D per class',
  tiny={
    '': lambda inner: aligned(inner, samples=6),
    'diagonal': lambda inner: aligned(inner, samples=6, diagonal=True, temperature=None),
  },
)
@recorded(defaults={'recipe': _default_recipe})
def aligned(
  inner: ContinualMethod,
  *,
  epochs: int = 5,
  samples: int = 256,
  recipe: Recipe | None = None,
  temperature: float | None = 0.1,
  decay: float = 0.1,
  shrinkage: float = 1e-4,
  diagonal: bool = False,
) -> ContinualMethod:
  """Trains the head of a method, after each task but the first, on Gaussian replay.

  Mean and covariance of each class's features are those at the end of its
  task. An epoch is `samples` draws per class seen, in batches of as many, of
  classes drawn evenly; the mean of class c is scaled by 1 - decay + decay x
  (t_c + 1) / (t + 1), with t_c its task. Logits are divided by the mean over
  tasks of the norms of each task's logits, and by `temperature`. Defaults are
  those of the SLCA authors' code. A class that comes again with a later task
  has that task's Gaussian from then on.

  Args:
    inner: any method that trains on every task and has a head, of any kind; one whose old features
      drift far gains little, so give its delta a slow rate (`grouped`).
    epochs: of alignment.
    samples: per class and epoch; also the batch size.
    recipe: of the head; SGD with momentum, rate 0.01 by default.
    temperature: of normalised logits; None leaves logits as they are.
    decay: how far the means of the oldest classes shrink towards zero.
    shrinkage: added to variances.
    diagonal: keep variances alone: C D numbers instead of C D^2.

  Raises:
    ValueError: if wrapping `inner` has no meaning, for sizes below 1, a
      temperature that is not positive, a negative decay or shrinkage, or a method without a head.

  >>> from pecft_jax.continual import aligned, finetune
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = aligned(finetune(model.backbone, Capacity(tasks=5, classes=10)))
  >>> method.name
  'aligned(finetune)'
  """
  need_classes(inner.capacity.problem, 'aligned')
  check_forgets(inner, 'aligned')
  if inner.head is None:
    raise ValueError(f'aligned needs a method with a head on its features, got {inner.name}')
  phases = alignment(
    inner.head,
    inner.capacity.tasks,
    epochs=epochs,
    samples=samples,
    recipe=_default_recipe() if recipe is None else recipe,
    temperature=temperature,
    decay=decay,
    shrinkage=shrinkage,
  )
  classes, width = inner.capacity.classes, inner.backbone.width

  def init(key, frozen):
    params, memory = inner.init(key, frozen)
    known = normals.no_gaussians(classes, width, diagonal=diagonal)
    return params, {'inner': memory, 'gaussians': known}

  def begin_task(params, memory, env, key):
    params, new = begun(inner, params, memory['inner'], env, key)
    fresh = normals.without(memory['gaussians'], env.task.classes)
    return params, {**memory, 'inner': new, 'gaussians': fresh}

  def consolidate(params, memory, env, batch):
    out = inner.forward(params, memory['inner'], env, batch.x, None)
    more = normals.with_rows(
      memory['gaussians'], out.features, batch.y, batch.valid, env.task.classes
    )
    new = consolidated(inner, params, memory['inner'], env, batch)
    return {**memory, 'inner': new, 'gaussians': more}

  return wrap(
    inner,
    'aligned',
    init=init,
    begin_task=begin_task,
    consolidate=consolidate,
    phases=phases,
  )
