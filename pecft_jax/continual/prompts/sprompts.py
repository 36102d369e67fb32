"""S-Prompts with images alone, S-iPrompts (Wang et al., 2022, arXiv:2207.12819).

Each task (a domain, say) learns a prompt and a head of its own. At test the task is that of the
nearest of the centres that K-means found among the task's frozen features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  only,
  raw,
  unit,
)
from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.kmeans import kmeans
from pecft_jax.continual.prompts.prefixes import room_for, with_slot
from pecft_jax.continual.prompts.specialists import logits_of_tasks, of_chosen, own_first
from pecft_jax.continual.prompts.tasks import task_or, with_tasks_of_labels
from pecft_jax.heads import linear
from pecft_jax.peft.compose import take
from pecft_jax.peft.tokens.prompt import prompt
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Delta,
  Head,
  Key,
  Once,
  Output,
)


class Domains(NamedTuple):
  """The prompt, the head and the centres of each task."""

  AXES = {'centres': ('task', None, 'feature')}

  prompts: Delta  # Tokens [T, P, D].
  heads: Any  # [T, ...]
  centres: Array  # [T, K, D], of features of length 1.


@about(
  'method',
  'prompts',
  Paper(
    "S-Prompts learning with pre-trained transformers: an Occam's razor for domain incremental "
    'learning',
    '2207.12819',
  ),
  needs=('attention', 'classes'),
  carries='a prompt, a head and some centres of features per task',
  passes='2',
  tiny=lambda backbone, capacity: sprompts(backbone, capacity, length=2, centres=2, sample=6),
)
@recorded(defaults={'head': linear})
def sprompts(
  backbone: Backbone,
  capacity: Capacity,
  *,
  head: Head | None = None,
  length: int = 10,
  centres: int = 5,
  sample: int = 2048,
) -> ContinualMethod:
  """Trains a prompt and a head per task, and finds the task by the nearest centre of features.

  Tasks are learned independently: a prompt at the encoder's input and a head, by the cross-entropy
  over the task's own classes. After training, K-means of the task's frozen features, scaled to
  length 1, gives its centres. At test the task is that of the nearest centre in the L1 distance, as
  in the authors' code, or the one that the scenario gives; the answer is one of its classes. Tasks
  may share classes (domain-incremental) or not. Until a task ends it has no centres.

  Clusters are of features of the images as they are, in the authors' code of training views.

  Args:
    backbone: frozen, with blocks of attention.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.
    length: P, tokens of a prompt.
    centres: K, of each task.
    sample: examples of a task whose features are clustered, at most; a uniform sample of larger
      tasks.

  Raises:
    ValueError: for a backbone without that site, a size below 1, or a problem without classes.

  >>> from pecft_jax.continual import sprompts
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = sprompts(model.backbone, Capacity(tasks=5, classes=10))
  >>> [phase.name for phase in method.phases]
  ['cluster']
  """
  head = linear() if head is None else head
  need_classes(capacity.problem, 'sprompts')
  at_least(1, length=length, centres=centres, sample=sample)
  tokens = prompt(r'^encoder$', length, draw=_rows_of_a_layer)
  abstract_delta(backbone, tokens)
  net, tasks, width = model(backbone, tokens), capacity.tasks, backbone.width

  def nothing_gathered():
    return sampling.empty(sample, jax.ShapeDtypeStruct((width,), jnp.float32))

  def fresh(key, frozen):
    return {'prompt': net.init(key, frozen), 'head': new_head(head, key, backbone, capacity)}

  def init(key, frozen):
    params = fresh(key, frozen)
    room = (params['prompt'], params['head'], jnp.zeros((centres, width)))
    return params, {
      'bank': Domains(*room_for(tasks, room)),
      'own': jnp.zeros((tasks, capacity.classes), bool),
      'sample': nothing_gathered(),
    }

  def begin_task(params, memory, env, key):
    del params
    own = memory['own'].at[env.task.index].set(env.task.classes)
    return fresh(key, env.frozen), {**memory, 'own': own}

  def domains(params, memory, env):
    """The bank with what is trained now in its slot."""
    old = memory['bank']
    prompts, heads = with_slot(
      (old.prompts, old.heads), env.task.index, (params['prompt'], params['head'])
    )
    return old._replace(prompts=prompts, heads=heads)

  def answers(params, memory, env, x, key, task):
    """Features [B, D], and logits [T, B, C] of all heads."""
    bank = domains(params, memory, env)
    features = net.features(env.frozen, take(bank.prompts, task), x, key)
    return features, logits_of_tasks(head, bank.heads, features)

  def forward(params, memory, env, x, key):
    rows = raw(x).shape[0]
    task = task_or(x, env, jnp.broadcast_to(env.task.index, (rows,)))
    features, each = answers(params, memory, env, x, key, task)
    return Output(of_chosen(each, task), jnp.zeros(rows), features)

  def predict(params, memory, env, x):
    query = _query(backbone, env.frozen, x)
    filled = jnp.arange(tasks) <= env.task.index
    nearest = jnp.where(filled, distances(query, memory['bank'].centres), jnp.inf).argmin(-1)
    task = task_or(x, env, nearest)
    _, each = answers(params, memory, env, x, None, task)
    return only(env.task.seen, own_first(each, task, memory['own'], env.task.home))

  def consolidate(params, memory, env, batch):
    del params
    query = _query(backbone, env.frozen, batch.x)
    kept = sampling.offer(memory['sample'], query, batch.valid, batch.index)
    return {**memory, 'sample': kept}

  def cluster(params, memory, env, key):
    kept = memory['sample']
    found = kmeans(kept.items, kept.filled, centres, key)
    bank = memory['bank']
    bank = bank._replace(centres=bank.centres.at[env.task.index].set(found))
    return params, {**memory, 'bank': bank, 'sample': nothing_gathered()}

  def end_task(params, memory, env):
    return params, {**memory, 'bank': domains(params, memory, env)}

  plain = from_forward(
    'sprompts',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    phases=(Once('cluster', cluster, after='consolidate'),),
    end_task=end_task,
    predict=predict,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    passes=lambda tasks: 2.0,
    renewed=('prompt', 'head'),
  )

  def loss(params, memory, env, batch, key):
    return plain.loss(params, memory, env, with_tasks_of_labels(batch, env), key)

  return plain._replace(loss=loss)


def distances(features: Array, centres: Array) -> Array:
  """The L1 distance to the nearest centre of each task: [B, D], [T, K, D] -> [B, T]."""
  one = lambda centre: jnp.abs(features - centre).sum(-1)  # [B]
  each = jax.lax.map(one, centres.reshape(-1, centres.shape[-1]))
  return each.reshape(*centres.shape[:2], -1).min(1).T


def _query(backbone: Backbone, frozen: Any, x: Any) -> Array:
  return unit(frozen_features(backbone, frozen, x).astype(jnp.float32))


def _rows_of_a_layer(key: Key, shape: tuple[int, ...]) -> Array:
  """As the authors' code, whose prompts are weights of PyTorch's linear layers."""
  bound = shape[-1] ** -0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
