"""GDumb: greedy sampler and dumb learner (Prabhu et al., ECCV 2020)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import about
from pecft_jax.arguments import at_least
from pecft_jax.continual.bounds.finetune import finetune
from pecft_jax.continual.core import mean_of_valid, raw
from pecft_jax.continual.memory import balanced
from pecft_jax.continual.memory.herding import no_exemplars
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import Backbone, Capacity, ContinualMethod, Fit, Head, PeftTransform, Task


def _default_recipe() -> Recipe:
  return sgd(0.05, weight_decay=1e-6, clip=10.0)


@about(
  'method',
  'replay',
  needs=('classes', 'stored examples'),
  carries='as many examples of each class',
  tiny=lambda backbone, capacity: gdumb(
    backbone, capacity, peft=lora('.', rank=2), size=capacity.classes, epochs=2, batch_size=4
  ),
)
@recorded(defaults={'peft': lora, 'head': linear, 'recipe': _default_recipe})
def gdumb(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  size: int = 500,
  epochs: int = 32,
  batch_size: int = 16,
  recipe: Recipe | None = None,
) -> ContinualMethod:
  """Stores a balanced sample, and trains from scratch on nothing else at the end of each task.

  The greedy sampler takes an example if its class has less than its share of the
  buffer, in one pass over the task's data; with more classes the largest ones lose
  examples. Then delta and head are trained from their initial values on what is
  stored, over all classes seen, by updates and a recipe of its own: those of the run
  do not matter. It is no continual method in earnest but a test of benchmarks:
  what does not beat it gains nothing from all the data that it saw.

  An update draws distinct examples uniformly, and stored images are trained on as they
  are. The authors train 256 epochs with CutMix and crops, and restart the rate
  after 1, 2, 4, ... of them.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: what classifies features; `linear()` by default.
    size: K, examples kept.
    epochs: of K / `batch_size` updates each, at the end of each task.
    batch_size: of an update; at most K.
    recipe: its optimizer; SGD with momentum and rate 0.05 by default.

  Raises:
    ValueError: for fewer examples than classes, a batch larger than K, fewer than one epoch, a
      problem without classes, or a transform that finds no site.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import gdumb
  >>> from pecft_jax.typing import Capacity
  >>> method = gdumb(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10))
  >>> [phase.name for phase in method.phases], method.trains(0)
  (['retrain'], False)
  """
  at_least(1, epochs=epochs, batch_size=batch_size)
  problem, classes = capacity.problem, capacity.classes
  need_classes(problem, 'gdumb')
  if size < max(classes, batch_size):
    raise ValueError(
      f'gdumb needs an example of each class, and of each row of an update: size must be at least '
      f'{max(classes, batch_size)}, got {size}'
    )
  inner = finetune(backbone, capacity, peft=peft, head=head)
  item = {'x': jax.ShapeDtypeStruct(backbone.inputs.shape, backbone.inputs.dtype)}

  def init(key, frozen):
    k_inner, k_offer = jax.random.split(key)
    params, _ = inner.init(k_inner, frozen)
    # The pass that samples has no key of its own: it makes them from this one.
    data = jax.random.key_data(k_offer)
    offered = jnp.zeros((), jnp.int32)
    return params, {'buffer': no_exemplars(size, item), 'offered': offered, 'key': data}

  def begin_task(params, memory, env, key):
    del params
    return inner.init(key, env.frozen)[0], memory

  def consolidate(params, memory, env, batch):
    del params, env
    key = jax.random.fold_in(jax.random.wrap_key_data(memory['key']), memory['offered'])
    items, y = {'x': raw(batch.x)}, batch.y
    buffer = balanced.offer(memory['buffer'], items, y, batch.valid, key, classes)
    offered = memory['offered'] + batch.valid.sum(dtype=jnp.int32)
    return {**memory, 'buffer': buffer, 'offered': offered}

  def loss(params, memory, env, batch, key):
    del batch
    k_draw, k_forward = jax.random.split(key)
    buffer = memory['buffer']
    # The first rows of a random order of what is stored; empty slots come last.
    chance = jnp.where(buffer.label >= 0, jax.random.uniform(k_draw, (size,)), 2)
    rows = jnp.argsort(chance)[:batch_size]
    y = buffer.label[rows]
    out = inner.forward(params, {}, env, buffer.items['x'][rows], k_forward)
    return mean_of_valid(problem.losses(out.logits, jnp.maximum(y, 0), env.task.seen), y >= 0)

  def steps(task: Task) -> int:
    del task
    return epochs * -(-size // batch_size)

  retrain = Fit(
    'retrain',
    loss,
    after='consolidate',
    recipe=_default_recipe() if recipe is None else recipe,
    trains=('delta', 'head'),
    steps=steps,
  )
  return inner._replace(
    name='gdumb',
    init=init,
    begin_task=begin_task,
    consolidate=consolidate,
    phases=(retrain,),
    trains=lambda task: False,
    query=None,
    renewed=('delta', 'head'),
    settings=None,
  )
