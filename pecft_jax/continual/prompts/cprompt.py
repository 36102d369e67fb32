"""CPrompt: consistent prompting for rehearsal-free continual learning (Gao et al., 2024,
arXiv:2403.08568).

Two prompts per task, found by a key per class. In training, old parts of the head stay sure of
what they said, and the new part learns behind prompts of any task: both are used so at test.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import (
  from_forward,
  frozen_features,
  mean_of_valid,
  normalised,
  only,
  raw,
  unit,
)
from pecft_jax.continual.prompts.prefixes import layers_of, room_for, with_slot
from pecft_jax.continual.prompts.tasks import task_or
from pecft_jax.heads import linear
from pecft_jax.peft.compose import take
from pecft_jax.peft.sites import matching_sites
from pecft_jax.problems import cross_entropy, need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Env,
  Head,
  Inputs,
  Key,
  Output,
  PeftTransform,
  Site,
)


class Prompts(NamedTuple):
  """Tokens at the encoder's input, and those that join them before a later block."""

  first: Array  # [P, D] or [B, P, D]
  second: Array  # [P, D] or [B, P, D]


@about(
  'method',
  'prompts',
  Paper('Consistent prompting for rehearsal-free continual learning', '2403.08568'),
  needs=('attention', 'class token', 'classes'),
  carries='two prompts per task, a key per class',
  passes='2',
  tiny=lambda backbone, capacity: cprompt(backbone, capacity, length=2),
)
@recorded(defaults={'head': linear})
def cprompt(
  backbone: Backbone,
  capacity: Capacity,
  *,
  head: Head | None = None,
  length: int = 50,
  block: int | None = None,
  smooth: float = 1.15,
  margin: float = 0.1,
  consistency: float = 1.0,
) -> ContinualMethod:
  """Trains two prompts per task and a key per class, with a head that sees prompts of all tasks.

  The loss of a task is the sum of four cross-entropies: behind the task's own prompts that of an
  auxiliary head among its classes, and, for each old task, that of the old part of the head to
  itself at a higher temperature (`smooth`; 1 where the new part is surer by `margin`), which has no
  gradient; of cosines between the frozen feature and the keys of classes seen; and of the head
  behind the prompts of a task drawn for each example. At test the best key finds the task, unless
  the scenario gives it, and with its prompts the head classifies over all classes.

  Old prompts, and old parts of the head, never change; prompts start from those before, keys
  orthogonal. Departures from the authors' code: features are those after the backbone's last norm,
  there before it; parts of the head start as the head does.

  Args:
    backbone: frozen, with blocks of attention and a class token.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.
    length: P, tokens of either prompt.
    block: before which the second prompt joins; the sixth by default, or the last one of a backbone
      with fewer.
    smooth: temperature above 1 that old parts of the head are softened with.
    margin: by which the new part's largest logit must be above an old one's not to soften it.
    consistency: weight of the cross-entropies of old parts to themselves.

  Raises:
    ValueError: for a backbone without those sites or that block, a size below 1, a temperature that
      is not positive, a negative weight, or a problem without classes.

  >>> from pecft_jax.continual import cprompt
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = cprompt(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.passes(5)
  2.0
  """
  head = linear() if head is None else head
  need_classes(capacity.problem, 'cprompt')
  at_least(1, length=length)
  above(0, smooth=smooth)
  at_least(0, margin=margin, consistency=consistency)
  transform = _staying(f'block_{_checked(backbone, block)}')
  tasks, classes, width = *capacity[:2], backbone.width
  keys_of = jax.nn.initializers.orthogonal()

  def init(key, frozen):
    del frozen
    k_prompts, k_keys, k_head, k_aux = jax.random.split(key, 4)
    params = {
      'prompts': _new_prompts(k_prompts, length, width),
      'keys': keys_of(k_keys, (classes, width)),
      'head': head.init(k_head, width, classes),
      'auxiliary': head.init(k_aux, width, classes),
    }
    return params, {
      'bank': room_for(tasks, params['prompts']),
      'own': jnp.zeros((tasks, classes), bool),
      'latest': jnp.zeros(classes, jnp.int32),
    }

  def begin_task(params, memory, env, key):
    index, now = env.task.index, env.task.classes
    own = memory['own'].at[index].set(now)
    latest = jnp.where(now, index, memory['latest'])
    return {**params, 'auxiliary': head.init(key, width, classes)}, {
      **memory,
      'own': own,
      'latest': latest,
    }

  def features(params, memory, env, x, key, task):
    """[B, D], of each example behind the prompts of its task [B]."""
    bank = with_slot(memory['bank'], env.task.index, params['prompts'])
    images = normalised(backbone.inputs, raw(x))
    found = backbone.apply(env.frozen, images, take(bank, task), peft=transform, key=key, rows=1)
    return found.pooled

  def forward(params, memory, env, x, key):
    task = task_or(x, env, jnp.broadcast_to(env.task.index, raw(x).shape[:1]))
    h = features(params, memory, env, x, key, task)
    return Output(head.logits(params['head'], h), jnp.zeros(h.shape[0]), h)

  def loss(params, memory, env, batch, key):
    k_dropout, k_task = (None, None) if key is None else jax.random.split(key)
    here = jnp.broadcast_to(env.task.index, batch.valid.shape)
    own = env.task.classes
    h = features(params, memory, env, batch.x, k_dropout, here)
    logits = head.logits(params['head'], h)
    each = cross_entropy(head.logits(params['auxiliary'], h), batch.y, own)
    old = head.logits(jax.lax.stop_gradient(params['head']), h)
    alike = to_themselves(old, own, memory['own'], env.task.index, smooth, margin)
    each += consistency * alike / jnp.maximum(env.task.index, 1)
    each += cross_entropy(_cosines(backbone, params['keys'], env, batch.x), batch.y, env.task.seen)
    any_task = here if k_task is None else drawn_tasks(k_task, env.task.index, len(here))
    mixed = features(params, memory, env, batch.x, k_dropout, any_task)
    each += cross_entropy(head.logits(params['head'], mixed), batch.y, own)
    return mean_of_valid(each, batch.valid), Output(logits, jnp.zeros(len(here)), h)

  def predict(params, memory, env, x):
    best = only(env.task.seen, _cosines(backbone, params['keys'], env, x)).argmax(-1)
    task = task_or(x, env, memory['latest'][best])
    h = features(params, memory, env, x, None, task)
    return only(env.task.seen, head.logits(params['head'], h))

  def end_task(params, memory, env):
    bank = with_slot(memory['bank'], env.task.index, params['prompts'])
    return params, {**memory, 'bank': bank}

  return from_forward(
    'cprompt',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    loss=loss,
    begin_task=begin_task,
    end_task=end_task,
    predict=predict,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    head=head,
    passes=lambda tasks: 2.0,
    renewed=('auxiliary',),
  )


def drawn_tasks(key: Key, index: Array, count: int) -> Array:
  """A task among those so far for each example: [count] int32."""
  return jax.random.randint(key, (count,), 0, index + 1)


def to_themselves(
  logits: Array, own: Array, each_own: Array, index: Array, smooth: float, margin: float
) -> Array:
  """The sum over old tasks of the cross-entropy of softened answers to the answers: [B].

  Args:
    logits: [B, C]
    own: [C] bool, the classes of the current task.
    each_own: [T, C] bool, the classes of each task.
    index: [] int32, the current task.
    smooth: the temperature.
    margin: where the current task's largest logit is above another's by more, nothing is softened.
  """
  now = jnp.where(own, logits, -jnp.inf).max(-1)

  def one(member: Array) -> Array:
    part = jnp.where(member, logits, -1e9)
    surer = now > part.max(-1) + margin
    soft = jax.nn.softmax(part / jnp.where(surer, 1.0, smooth)[:, None], -1)
    logs = jnp.where(member, jax.nn.log_softmax(part, -1), 0)
    return -(jax.lax.stop_gradient(soft) * logs).sum(-1)

  each = jax.vmap(one)(each_own)  # [T, B]
  there = jnp.arange(len(each_own)) < index
  return jnp.where(there[:, None], each, 0).sum(0)


def _cosines(backbone: Backbone, keys: Array, env: Env, x: Inputs) -> Array:
  """[B, C] of frozen features and keys; keys of old classes get no gradient."""
  keys = jnp.where(env.task.classes[:, None], keys, jax.lax.stop_gradient(keys))
  return unit(frozen_features(backbone, env.frozen, x)) @ unit(keys).T


def _new_prompts(key: Key, length: int, width: int) -> Prompts:
  """As the authors' code, whose prompts are weights of PyTorch's linear layers."""
  bound = width**-0.5
  draw = lambda key: jax.random.uniform(key, (length, width), minval=-bound, maxval=bound)
  return Prompts(*map(draw, jax.random.split(key)))


def _checked(backbone: Backbone, block: int | None) -> int:
  """The number of the block, in a backbone that has what is needed."""
  (later,) = layers_of(backbone, None if block is None else [block], (5,))
  (encoder,) = matching_sites(backbone.sites, 'tokens', r'^encoder$')
  if not encoder.site.lead:
    raise ValueError(f'cprompt needs a class token, and {backbone.name} has none')
  matching_sites(backbone.sites, 'tokens', rf'^block_{later}$')
  return later


def _staying(block: str) -> PeftTransform:
  """Inserts tokens before the encoder, and more before a block, which all stay to its end."""

  def insert(x: Array, tokens: Array, lead: int) -> Array:
    tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape[-2:])).astype(x.dtype)
    return jnp.concatenate([x[:, :lead], tokens, x[:, lead:]], 1)

  def intercept(prompts: Prompts, site: Site, next_fn: Callable[..., Array], *args: Any) -> Array:
    if site.kind != 'tokens' or site.path not in ('encoder', block):
      return next_fn(*args)
    x, mask = args
    assert mask is None  # Bidirectional encoders only.
    if site.path == block:
      return next_fn(insert(x, prompts.second, site.lead), mask)
    y = next_fn(insert(x, prompts.first, site.lead), mask)
    size = prompts.first.shape[-2] + prompts.second.shape[-2]
    return jnp.concatenate([y[:, : site.lead], y[:, site.lead + size :]], 1)

  return PeftTransform(lambda key, sites, params: None, intercept)
