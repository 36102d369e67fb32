"""RanPAC: random projections and a ridge classifier (McDonnell et al., 2023, arXiv:2307.02251)."""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  model,
  new_head,
  on_features,
  only,
)
from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.moments import no_moments, with_rows
from pecft_jax.continual.memory.ridge import Examples, best_ridge, least_ridge, solve_surely
from pecft_jax.continual.memory.sample import Sample
from pecft_jax.continual.memory.statistics import one_hot
from pecft_jax.continual.memory.symmetric import dot
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import adaptformer
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
  'statistics',
  Paper('RanPAC: random projections and pre-trained models for continual learning', '2307.02251'),
  needs=('classes',),
  carries='R, half of a Gram matrix M x M, and sums M x C of projected features',
  tiny=lambda backbone, capacity: ranpac(
    backbone, capacity, peft=lora('.', rank=2), projection=16, sample=30
  ),
)
@recorded(defaults={'peft': adaptformer, 'head': linear})
def ranpac(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  projection: int = 10_000,
  sample: int = 5_000,
  seed: int = 0,
) -> ContinualMethod:
  """Trains the delta on the first task only; then solves ridge regressions exactly.

  h = relu(f(x) R) with R a fixed Gaussian matrix [D, M]; G = sum h h^T and
  Q = sum h y^T are carried from task to task, as `Moments`, so the classifier
  (G + ridge I)^-1 Q does not depend on the order of the data.

  The ridge is the one of 10^-8 .. 10^8 with the least squared error on a fifth
  of the task's examples after a regression on the others, as in the authors'
  code; of a task with more than `sample` examples, on a uniform sample of them.
  Their features f(x) are stored until the end of the task; M-wide ones never are.

  Sums and solves are in float32 at the highest matmul precision. Ridges that
  are lost in the rounding of the sums (`least_ridge`) are left out.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what the first task trains, `adaptformer()` by default; `linear_probe()` for
      the backbone as it is.
    head: what the first task trains, and no prediction reads; `linear()` by default, `cosine()` in
      the authors' code.
    projection: M.
    sample: examples of a task that the ridge is chosen on, at most; at least 5.
    seed: of R, which is drawn once, at the start, and carried.

  Raises:
    ValueError: if the transform finds no site in the backbone, `projection` is below 1, `sample`
      below 5, or the problem has no classes.

  >>> from pecft_jax.continual import ranpac
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = ranpac(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'ranpac'
  """
  need_classes(capacity.problem, 'ranpac')
  at_least(1, projection=projection)
  if sample < 5:
    raise ValueError(f'sample must be at least 5, a fifth of it is held out; got {sample}')
  peft = adaptformer() if peft is None else peft
  head = linear() if head is None else head
  net = model(backbone, peft)
  anything = bool(jax.tree.leaves(abstract_delta(backbone, peft)))
  classes = capacity.classes

  def init(key, frozen):
    params = {'delta': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    memory = {
      # Drawing it takes twice as long as a batch's features times it.
      'draw': jax.random.normal(
        jax.random.key(seed, impl='threefry2x32'), (backbone.width, projection)
      ),
      'moments': no_moments(projection, classes),
      'weights': jnp.zeros((projection, classes)),
      'ridge': jnp.zeros(()),
      **no_examples(),
    }
    return params, memory

  def no_examples():
    item = jax.ShapeDtypeStruct((backbone.width,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    held = sample // 5
    return {'fit': sampling.empty(sample - held, item), 'held': sampling.empty(held, item)}

  def forward(params, memory, env, x, key):
    del memory
    features = net.features(env.frozen, params['delta'], x, key)
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def projected(features, memory):
    return jax.nn.relu(dot(features, memory['draw']))

  def consolidate(params, memory, env, batch):
    features = net.features(env.frozen, params['delta'], batch.x).astype(jnp.float32)
    h, targets = projected(features, memory), one_hot(batch.y, batch.valid, classes)
    held = held_out(batch.index)
    parts = {'fit': batch.valid & ~held, 'held': batch.valid & held}
    return {
      **memory,
      'moments': with_rows(memory['moments'], h, targets, batch.valid),
      **{
        name: sampling.offer(memory[name], (features, batch.y), rows, batch.index)
        for name, rows in parts.items()
      },
    }

  def rows_of(memory, name) -> Examples:
    examples: Sample = memory[name]
    features, labels = examples.items
    valid = examples.filled
    return Examples(projected(features, memory), one_hot(labels, valid, classes), valid)

  def end_task(params, memory, env):
    del env
    moments = memory['moments']
    fit, held = rows_of(memory, 'fit'), rows_of(memory, 'held')
    # A held-out example of a class with no example to fit would always favour the strongest ridge.
    fitted = (fit.y * fit.valid[:, None]).any(0)
    held = held._replace(valid=held.valid & (held.y * fitted).any(1))
    ridge = best_ridge(fit, held, least=least_ridge(moments))
    weights, ridge = solve_surely(moments, ridge)
    return params, {**memory, 'weights': weights, 'ridge': ridge, **no_examples()}

  def answers(params, memory, env, features, x):
    del params, x
    scores = dot(projected(features, memory), memory['weights'])
    return only(env.task.seen, scores)

  def adapted(params, memory, env):
    del memory, env
    return Adapted(peft, params['delta'], None)  # Its classifier reads projected features.

  return from_forward(
    'ranpac',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    consolidate=consolidate,
    end_task=end_task,
    predict=on_features(net, 'delta', answers),
    transforms={'delta': peft},
    head=head,
    adapted=adapted,
    trains=lambda task: anything and task == 0,
  )


def held_out(index: Array) -> Array:
  """A fifth of all rows [B] bool, of any eight in a row at least one.

  Fibonacci hashing spreads them evenly, whatever the period in which classes
  follow one another in the data.
  """
  return index.astype(jnp.uint32) * jnp.uint32(2654435769) < jnp.uint32(2**32 // 5)
