"""iCaRL: incremental classifier and representation learning (Rebuffi et al., 2017,
arXiv:1611.07725).
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import (
  from_forward,
  mean_of_valid,
  model,
  new_head,
  only,
  unit,
)
from pecft_jax.continual.memory import exemplars
from pecft_jax.continual.memory.herding import no_exemplars
from pecft_jax.continual.memory.statistics import class_sums
from pecft_jax.heads import linear
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


@about(
  'method',
  'replay',
  Paper('iCaRL: incremental classifier and representation learning', '1611.07725'),
  needs=('classes', 'stored examples'),
  carries='herded examples of all classes, and the model from before the task',
  tiny=lambda backbone, capacity: icarl(
    backbone, capacity, peft=lora('.', rank=2), size=2 * capacity.classes + 1, candidates=9
  ),
)
@recorded(defaults={'peft': lora, 'head': linear})
def icarl(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  size: int = 2000,
  candidates: int = 5000,
) -> ContinualMethod:
  """Trains on new data and herded exemplars together, and classifies by nearest mean of exemplars.

  The loss is a binary cross-entropy for each class seen, summed over classes. The
  targets of old classes are the predictions of the model from before the task (distillation), those
  of new classes the label. Each epoch visits every stored exemplar once.

  After training, class means and the features of the task are gathered in one pass, exemplars are
  chosen by herding, and a second pass fetches their images: no other image is ever stored.
  Features have length 1 wherever they are compared or averaged.

  Exemplars are replayed without augmentation, which is for the task's own data. A class that comes
  with several tasks keeps exemplars of the last of them, and is a new class there. A class
  with fewer examples than its share of the buffer has some of them visited more often.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what is trained of the backbone; `lora()` by default.
    head: of the training loss alone, as classes are means of exemplars; `linear()` by default.
    size: K, exemplars in all, shared evenly by the classes seen.
    candidates: N, examples of a task whose features [N, D] are stored until exemplars are chosen.
      Of a task with more, exemplars are chosen among a uniform sample; means are of all.

  Raises:
    ValueError: for fewer exemplars than classes, no candidates, a problem without classes, or a
      transform that finds no site.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.typing import Capacity
  >>> method = icarl(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10), size=200)
  >>> [phase.name for phase in method.phases]
  ['herd', 'fetch']
  """
  need_classes(capacity.problem, 'icarl')
  classes, width = capacity.classes, backbone.width
  if size < classes:
    raise ValueError(
      f'icarl needs an exemplar of each class: size must be at least {classes}, got {size}'
    )
  if candidates < 1:
    raise ValueError(f'candidates must be at least 1, got {candidates}')
  peft = lora() if peft is None else peft
  head = linear() if head is None else head
  net, spec = model(backbone, peft), backbone.inputs
  nothing_gathered = lambda: exemplars.nothing_gathered(size, candidates, classes, width)

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    item = {'x': jax.ShapeDtypeStruct(spec.shape, spec.dtype)}
    memory = {
      'teacher': jax.tree.map(jnp.zeros_like, params),
      'means': jnp.zeros((classes, width)),
      'buffer': no_exemplars(size, item),
      **nothing_gathered(),
    }
    return params, memory

  def features_of(params, env, x):
    return unit(net.features(env.frozen, params['delta'], x).astype(jnp.float32))

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def loss(params, memory, env, batch, key):
    out = forward(params, memory, env, batch.x, key)
    labels = jax.nn.one_hot(batch.y, classes)

    def distilled():
      before = forward(memory['teacher'], memory, env, batch.x, None).logits
      old = env.task.past & ~env.task.classes
      return jnp.where(old, jax.nn.sigmoid(jax.lax.stop_gradient(before)), labels)

    # The first task has no teacher, and computes none.
    targets = jax.lax.cond(env.task.past.any(), distilled, lambda: labels)
    learnt = env.task.seen if env.among is None else env.task.seen & env.among
    losses = jnp.where(learnt, binary_cross_entropy(out.logits, targets), 0).sum(-1)
    return mean_of_valid(losses, batch.valid), out

  def consolidate(params, memory, env, batch):
    features = features_of(params, env, batch.x)
    return exemplars.gathered(memory, features, batch, classes)

  def end_task(params, memory, env):
    buffer = memory['buffer']
    # In chunks: the activations of all K images at once would not fit.
    one = lambda x: features_of(params, env, x[None])[0]
    features = jax.lax.map(one, buffer.items['x'], batch_size=min(size, 64))
    sums, _ = class_sums(features, buffer.label, buffer.label >= 0, classes)
    return params, {**memory, 'teacher': params, 'means': unit(sums), **nothing_gathered()}

  def predict(params, memory, env, x):
    # The nearest of vectors of length 1 has the largest product.
    scores = jnp.matmul(features_of(params, env, x), memory['means'].T, precision='highest')
    return only(env.task.seen, scores)

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], None)  # Classified by means of exemplars.

  return from_forward(
    'icarl',
    backbone,
    capacity,
    init,
    forward,
    masked=False,
    loss=loss,
    consolidate=consolidate,
    phases=exemplars.choice(size),
    end_task=end_task,
    predict=predict,
    joined=exemplars.joined(size, classes),
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
  )


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
  """-(q log p + (1 - q) log(1 - p)) for each entry, with p = sigmoid(logits), q = targets."""
  return jax.nn.softplus(logits) - targets * logits
