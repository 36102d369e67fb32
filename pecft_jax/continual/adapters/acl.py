"""ACL: adapter learning for continual learning of diseases (Zhang et al., 2023, arXiv:2304.09042).

Each task has an adapter and a head, whose last output stands for whatever is not of the task. The
head that is surest that an example is its own answers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.adapters.others import all_losses, answers, drawn, new_losses
from pecft_jax.continual.adapters.slices import slot_of, with_slot
from pecft_jax.continual.core import from_forward, mean_of_valid, model, new_head, only, unit
from pecft_jax.continual.memory import exemplars
from pecft_jax.continual.memory.herding import no_exemplars
from pecft_jax.heads import linear, with_slots
from pecft_jax.peft.adapters.bottleneck import adaptformer
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, adam
from pecft_jax.schedules import milestones
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Env,
  Fit,
  Head,
  Key,
  Once,
  Output,
  Params,
  Parts,
  PeftTransform,
  Update,
)


def _default_recipe() -> Recipe:
  return adam(1e-3, schedule=milestones((0.3, 0.7)))


@about(
  'method',
  'adapters',
  Paper(
    'Adapter learning in pretrained feature extractor for continual learning of diseases',
    '2304.09042',
  ),
  needs=('classes', 'stored examples'),
  carries='a delta and a head per task, and herded examples of all classes',
  passes='T',
  tiny=lambda backbone, capacity: acl(
    backbone,
    capacity,
    peft=lora('.', rank=2),
    size=2 * capacity.classes + 1,
    candidates=9,
    epochs=1,
    batch_size=4,
  ),
)
@recorded(defaults={'peft': adaptformer, 'head': linear, 'recipe': _default_recipe})
def acl(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  size: int = 2000,
  candidates: int = 5000,
  epochs: int = 10,
  batch_size: int = 32,
  recipe: Recipe | None = None,
) -> ContinualMethod:
  """Trains an adapter and a head per task with an output for other classes, then tunes all heads.

  A task starts from the adapter of the task before. It trains with a head for its own classes and
  one output more, which is right for the stored examples of old classes; each epoch visits all of
  them once. Then examples are chosen by herding, and from the second task on all heads are tuned on
  these alone, which are balanced, with the adapters as they are: the loss is the sum of the
  cross-entropies of all heads, where each counts classes of other tasks as its last output. The
  new head starts afresh for that, as in the authors' code; the first task keeps the head that it
  trained with. At test, the task with the smallest probability of the last output answers among its
  classes, unless the scenario gives the task. A class that comes with several tasks is of the last
  of them.

  Departures from the authors' code: a transform on a transformer in the place of two convolutions
  between the stages of a ResNet; heads are tuned on what is stored after the task, there on as many
  examples of each class as were stored before it; stored examples are trained on as they are, there
  in new views; the cross-entropy of a head counts in every update, there in those with an example
  of its classes.

  A prediction costs as many forward passes as tasks were seen, and so does each update of the
  tuning.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what each task trains; `adaptformer()` by default.
    head: what classifies features, with an output per class and one per task; `linear()` by
      default.
    size: K, exemplars in all, shared evenly by the classes seen.
    candidates: N, examples of a task whose features are stored until exemplars are chosen.
    epochs: of the tuning, of K / `batch_size` updates each; 50 and 100 in the authors' code.
    batch_size: of an update of the tuning, at most K.
    recipe: of the tuning; Adam, rate 1e-3, a tenth of it after 30 % and 70 %, by default.

  Raises:
    ValueError: for fewer exemplars than classes or than a batch has, a number below 1, a problem
      without classes, or a transform that finds no site.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import acl
  >>> from pecft_jax.typing import Capacity
  >>> method = acl(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10), size=200)
  >>> [phase.name for phase in method.phases]
  ['herd', 'fetch', 'heads', 'tune']
  """
  need_classes(capacity.problem, 'acl')
  _check(size, capacity.classes, batch_size, candidates=candidates, epochs=epochs)
  tasks, classes, width = capacity.tasks, capacity.classes, backbone.width
  peft = adaptformer() if peft is None else peft
  head = linear() if head is None else head
  net, losses = model(backbone, peft), capacity.problem.losses
  # Outputs for all classes, then one for each task.
  fresh = functools.partial(
    new_head, head, backbone=backbone, capacity=capacity._replace(classes=classes + tasks)
  )
  each_logits = jax.vmap(head.logits, (None, 0))  # [T, B, D] -> [T, B, C + T]
  nothing = lambda: exemplars.nothing_gathered(size, candidates, classes, width)

  def init(key, frozen):
    delta = net.init(key, frozen)
    item = {'x': jax.ShapeDtypeStruct(backbone.inputs.shape, backbone.inputs.dtype)}
    memory = {
      'bank': jax.tree.map(lambda a: jnp.zeros((tasks, *a.shape), a.dtype), delta),
      'owner': jnp.full(classes, -1, jnp.int32),
      'buffer': no_exemplars(size, item),
      **nothing(),
    }
    return {'delta': delta, 'new': fresh(key), 'head': fresh(key)}, memory

  def begin_task(params, memory, env, key):
    owner = jnp.where(env.task.classes, env.task.index, memory['owner'])
    return {**params, 'new': fresh(key)}, {**memory, 'owner': owner}

  def outputs(params, env, x, key):
    """Of the new head, for all classes and tasks, and of the features."""
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['new'], features)
    return logits, Output(logits[:, :classes], jnp.zeros(logits.shape[0]), features)

  def forward(params, memory, env, x, key):
    del memory
    return outputs(params, env, x, key)[1]

  def loss(params, memory, env, batch, key):
    del memory
    logits, out = outputs(params, env, batch.x, key)
    return mean_of_valid(new_losses(losses, logits, batch.y, env), batch.valid), out

  def consolidate(params, memory, env, batch):
    features = unit(net.features(env.frozen, params['delta'], batch.x).astype(jnp.float32))
    return exemplars.gathered(memory, features, batch, classes)

  def adapter(params, memory, env, i):
    return slot_of(memory['bank'], params['delta'], i, env.task.index)

  def features_of(params, memory, env, x):
    """Under each adapter so far [T, B, D]; zeros for tasks to come."""
    one = lambda i: net.features(env.frozen, adapter(params, memory, env, i), x)
    put = lambda i, found: found.at[i].set(one(i))
    return jax.lax.fori_loop(0, env.task.index + 1, put, jnp.zeros((tasks, x.shape[0], width)))

  def tune(params, memory, env, batch, key):
    del batch
    x, y, valid = drawn(memory['buffer'], batch_size, key)
    features = jax.lax.stop_gradient(features_of(params, memory, env, x))
    logits = each_logits(params['head'], features)
    return mean_of_valid(all_losses(losses, logits, memory['owner'], y, env), valid)

  def end_task(params, memory, env):
    bank = with_slot(memory['bank'], params['delta'], env.task.index)
    return params, {**memory, 'bank': bank, **nothing()}

  def combine(params, memory, env, features, x):
    logits = each_logits(params['head'], features)
    return only(env.task.seen, answers(logits, memory['owner'], x, env))

  recipe = _default_recipe() if recipe is None else recipe
  steps = lambda task: epochs * -(-size // batch_size)
  tuning = Fit('tune', tune, 'heads', recipe, ('head',), steps, when=lambda task: task > 0)
  start = functools.partial(_start_heads, fresh, tasks)
  return from_forward(
    'acl',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    loss=loss,
    begin_task=begin_task,
    observe=_keep_heads,
    consolidate=consolidate,
    phases=(*exemplars.choice(size), Once('heads', start, after='fetch'), tuning),
    end_task=end_task,
    predict=Parts(adapter, net.features, combine, slots=tasks, used=lambda env: env.task.index + 1),
    joined=exemplars.joined(size, classes),
    passes=float,
    transforms={'delta': peft},
    renewed=('new',),
  )


def _check(size: int, classes: int, batch_size: int, **counts: int) -> None:
  at_least(1, batch_size=batch_size, **counts)
  if size < max(classes, batch_size):
    raise ValueError(
      f'acl needs an exemplar of each class, and of each row of an update: size must be at least '
      f'{max(classes, batch_size)}, got {size}'
    )


def _keep_heads(
  params: Params, memory: Any, env: Env, batch: Batch, out: Output, update: Update, key: Key
) -> tuple[Params, Any]:
  """Puts the tuned heads back, which have no gradient, but may have a decay of weights."""
  del env, batch, out, key
  return {**params, 'head': update.before['head']}, memory


def _start_heads(
  fresh: Callable[[Key], Any], tasks: int, params: Params, memory: Any, env: Env, key: Key
) -> tuple[Params, Any]:
  """Starts the outputs of the new task afresh; the first task keeps the head it trained with."""
  index = env.task.index
  own = jnp.concatenate([env.task.classes, jnp.arange(tasks) == index])
  started = with_slots(params['head'], fresh(key), own)
  kept = jax.tree.map(lambda a, b: jnp.where(index == 0, a, b), params['new'], started)
  return {**params, 'head': kept}, memory
