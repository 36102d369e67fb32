"""DualPrompt: complementary prompting (Wang et al., 2022, arXiv:2204.04799).

A general prefix in the first blocks is shared by all tasks; an expert prefix in the blocks after
them belongs to one task, and is found by its key.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  only,
  unit,
)
from pecft_jax.continual.prompts.prefixes import (
  drawn,
  hundredth,
  layers_of,
  prefixes_at,
  room_for,
  with_slot,
)
from pecft_jax.continual.prompts.tasks import task_or, with_tasks_of_labels
from pecft_jax.continual.prompts.votes import vote
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain, take
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Backbone, Capacity, ContinualMethod, Delta, Head, Output


class Experts(NamedTuple):
  """The expert prefix of each task, with the key that it is found by."""

  AXES = {'keys': ('task', 'width')}

  prefixes: Delta  # By site, keys and values [T, P, H, K].
  keys: Array  # [T, D]


@about(
  'method',
  'prompts',
  Paper('DualPrompt: complementary prompting for rehearsal-free continual learning', '2204.04799'),
  needs=('attention',),
  carries='a prefix and a key per task',
  passes='2',
  switches=(
    Switch(
      'batchwise',
      True,
      'all examples of a batch get the expert that most of them vote for at test, where a batch of '
      'one task gives the task away',
      'google-research/l2p, PILOT, mammoth',
    ),
    Switch(
      'reshaped',
      True,
      'a reshape stands where a transpose was meant, so that half of a batch gets the learned keys '
      'as keys and values, the other half the learned values',
      'PyTorch ports: dualprompt-pytorch, PILOT, mammoth',
    ),
  ),
  tiny=lambda backbone, capacity: dualprompt(backbone, capacity, general=2, expert=3),
)
@recorded(defaults={'head': linear})
def dualprompt(
  backbone: Backbone,
  capacity: Capacity,
  *,
  head: Head | None = None,
  general: int = 5,
  expert: int = 5,
  general_layers: Sequence[int] | None = None,
  expert_layers: Sequence[int] | None = None,
  pull: float = 1.0,
  transfer: bool = True,
  batchwise: bool = False,
  reshaped: bool = False,
) -> ContinualMethod:
  """Trains a general prefix, an expert prefix and a key per task; google-research/l2p's defaults.

  Training uses the current task's expert (of replayed examples with a label, that of their class).
  Prediction uses the expert, among those of tasks seen, whose key has the largest cosine with the
  frozen feature, or that of the task where the scenario gives it. Experts and keys of past tasks
  never change; the general prefix and the head train on. The training softmax is over the task's
  own classes.

  Args:
    backbone: frozen, with blocks of attention.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.
    general: keys, and as many values, of the general prefix. GT-RIPL/CODA-Prompt counts both
      together: its length 6 is 3 here.
    expert: the same of an expert prefix.
    general_layers: its blocks, counted from 0; the first two by default.
    expert_layers: of expert prefixes; blocks 2 to 4 by default, or the last one of a backbone with
      fewer.
    pull: weight of the term that draws the task's key to its queries, 1 - cos(query, key).
    transfer: start a task's expert from the one before, not from a fresh draw; keys are fresh.
    batchwise: at test, use for all examples of a batch the expert that most of them select.
      Predictions then depend on what else is in the batch, its padding included; where test
      batches hold one task, it leaks the task identity.
    reshaped: lay expert prefixes out as PyTorch ports do, where a reshape stands for a transpose:
      the first half of a batch gets the learned keys as keys and values, the second half the
      learned values. For comparison with their results only.

  Raises:
    ValueError: for a backbone without attention or without the named blocks, a length below 1, a
      negative pull, or a problem as in `finetune`.

  >>> from pecft_jax.continual import dualprompt
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = dualprompt(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.passes(5)
  2.0
  """
  head = linear() if head is None else head
  need_row_of_answers(capacity.problem, capacity.classes, 'dualprompt')
  at_least(1, general=general, expert=expert)
  at_least(0, pull=pull)
  common = prefixes_at(layers_of(backbone, general_layers, (0, 1)), general)
  own = prefixes_at(layers_of(backbone, expert_layers, (2, 3, 4)), expert)
  shapes = {'general': abstract_delta(backbone, common), 'expert': abstract_delta(backbone, own)}
  net, tasks = model(backbone, chain(general=common, expert=own)), capacity.tasks

  def fresh(key, frozen):
    del frozen
    k_prefix, k_key = jax.random.split(key)
    prefixes = drawn(shapes['expert'], k_prefix, hundredth)
    return {'expert': prefixes, 'key': hundredth(k_key, (backbone.width,))}

  def init(key, frozen):
    k_general, k_fresh = jax.random.split(key)
    params = {
      'general': drawn(shapes['general'], k_general, hundredth),
      **fresh(k_fresh, frozen),
      'head': new_head(head, key, backbone, capacity),
    }
    return params, {'bank': Experts(*room_for(tasks, (params['expert'], params['key'])))}

  def begin_task(params, memory, env, key):
    new = fresh(key, env.frozen)
    first = env.task.index == 0
    if transfer:
      start = lambda now, new: jnp.where(first, new, now)
      new['expert'] = jax.tree.map(start, params['expert'], new['expert'])
    return {**params, **new}, memory

  def experts(params, memory, env):
    now = Experts(params['expert'], params['key'])
    return with_slot(memory['bank'], env.task.index, now)

  def cosines(params, memory, env, x):
    query = unit(frozen_features(backbone, env.frozen, x))
    return query @ unit(experts(params, memory, env).keys).T  # [B, T]

  def answers(params, memory, env, x, key, task, cosine):
    prefixes = take(experts(params, memory, env).prefixes, task)  # [B, P, H, K]
    if reshaped:
      prefixes = {path: _as_in_ports(each) for path, each in prefixes.items()}
    delta = {'general': params['general'], 'expert': prefixes}
    features = net.features(env.frozen, delta, x, key)
    near = jnp.take_along_axis(cosine, task[:, None], 1)[:, 0]
    return Output(head.logits(params['head'], features), pull * (1 - near), features)

  def forward(params, memory, env, x, key):
    task = task_or(x, env, env.task.index)
    return answers(params, memory, env, x, key, task, cosines(params, memory, env, x))

  def predict(params, memory, env, x):
    cosine = cosines(params, memory, env, x)
    filled = jnp.where(jnp.arange(tasks) <= env.task.index, cosine, -2.0)
    chosen = vote(filled, 1)[0] if batchwise else filled.argmax(-1)
    logits = answers(params, memory, env, x, None, task_or(x, env, chosen), cosine).logits
    return only(env.task.seen, logits) if capacity.problem.classes else logits

  def end_task(params, memory, env):
    return params, {'bank': experts(params, memory, env)}

  plain = from_forward(
    'dualprompt',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    predict=predict,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    transforms={'general': common, 'expert': own},
    head=head,
    passes=lambda tasks: 2.0,
    renewed=('key',) if transfer else ('expert', 'key'),
  )

  def loss(params, memory, env, batch, key):
    known = with_tasks_of_labels(batch, env) if capacity.problem.classes else batch
    return plain.loss(params, memory, env, known, key)

  return plain._replace(loss=loss)


def _as_in_ports(each: PrefixDelta) -> PrefixDelta:
  """Keys and values [2, B, P, H, K], read as [B, 2, P, H, K] without a transpose."""
  both = jnp.stack(each)
  both = both.reshape(both.shape[1], 2, *both.shape[2:])
  return PrefixDelta(both[:, 0], both[:, 1])
