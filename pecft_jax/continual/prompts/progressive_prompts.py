"""Progressive Prompts (Razdaibiedina et al., 2023, arXiv:2301.12314).

A new prompt per task, put before those of all earlier tasks, which stay as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  model,
  new_head,
  only,
  raw,
)
from pecft_jax.continual.prompts.prefixes import room_for, with_slot
from pecft_jax.continual.prompts.specialists import logits_of_tasks, of_chosen, own_first
from pecft_jax.continual.prompts.tasks import task_or, with_tasks_of_labels
from pecft_jax.heads import linear
from pecft_jax.masks import Mask
from pecft_jax.peft.compose import chain, take
from pecft_jax.peft.tokens.prompt import PromptDelta, prompt
from pecft_jax.problems import need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Delta,
  Given,
  Head,
  Key,
  Output,
  PeftTransform,
)


class Steps(NamedTuple):
  """The prompt and the head of each task."""

  AXES = {'prompts': ('task', 'token', 'width')}

  prompts: Array  # [T, P, D]
  heads: Any  # [T, ...]


class Mlp(NamedTuple):
  """tanh(P W1 + b1) W2 + b2, which is added to a prompt P while it is trained."""

  AXES = {'inner': ('in', 'out'), 'outer': ('in', 'out')}

  inner: Array  # [D, H]
  inner_bias: Array  # [H]
  outer: Array  # [H, D]
  outer_bias: Array  # [D]


@about(
  'method',
  'prompts',
  Paper('Progressive prompts: continual learning for language models', '2301.12314'),
  needs=('attention', 'classes', 'task identity'),
  carries='a prompt and a head per task',
  passes='T',
  tiny={
    '': lambda backbone, capacity: progressive_prompts(backbone, capacity, length=2),
    'bottleneck': lambda backbone, capacity: progressive_prompts(
      backbone, capacity, length=1, bottleneck=3
    ),
  },
)
@recorded(defaults={'head': linear})
def progressive_prompts(
  backbone: Backbone,
  capacity: Capacity,
  *,
  head: Head | None = None,
  length: int = 10,
  bottleneck: int | None = None,
) -> ContinualMethod:
  """Trains a prompt and a head per task behind the frozen prompts of all tasks before it.

  An example of task k is read behind the prompts of tasks k, k - 1, ..., 0, in this order. So tasks
  are never forgotten, and later ones build on earlier ones. It is made for tasks that are known at
  test (`task_incremental` scenarios): then a prediction is one pass. Otherwise it is a pass for
  each task seen, and the class with the largest logit in its task's pass wins; logits of different
  tasks were never trained against each other, so accuracies with the task known count alone.

  Shapes are constant: all T prompts stand before the text or the patches, and those of later tasks
  are masked, so each pass costs what the last task's does.

  Departures from the authors' code: a head classifies the backbone's feature, there T5 writes the
  label; prompts start from small random numbers, there from embeddings of random words; the last
  prompt of a task is kept, there the best one on held-out data.

  Args:
    backbone: frozen, with blocks of attention.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.
    length: P, tokens of a prompt.
    bottleneck: hidden width of a residual network with one hidden layer (tanh) that a prompt goes
      through while it is trained, 800 in the authors' code; None for the prompt itself.

  Raises:
    ValueError: for a backbone without that site, a size below 1, or a problem without classes.

  >>> from pecft_jax.continual import progressive_prompts
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = progressive_prompts(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'progressive_prompts'
  """
  head = linear() if head is None else head
  need_classes(capacity.problem, 'progressive_prompts')
  at_least(1, length=length, bottleneck=bottleneck)
  tokens, tasks, width = prompt(r'^encoder$', length), capacity.tasks, backbone.width
  abstract_delta(backbone, tokens)
  net = model(backbone, chain(hidden=_hidden(), prompts=tokens))

  def fresh(key, frozen):
    k_prompt, k_mlp = jax.random.split(key)
    ((_, new),) = tokens.init(k_prompt, backbone.sites, frozen).items()
    mlp = {} if bottleneck is None else {'mlp': _new_mlp(k_mlp, width, bottleneck)}
    state = new_head(head, key, backbone, capacity)
    return {'prompt': new.tokens, **mlp, 'head': state}

  def init(key, frozen):
    params = fresh(key, frozen)
    own = jnp.zeros((tasks, capacity.classes), bool)
    bank = Steps(*room_for(tasks, (params['prompt'], params['head'])))
    return params, {'bank': bank, 'own': own}

  def begin_task(params, memory, env, key):
    del params
    own = memory['own'].at[env.task.index].set(env.task.classes)
    return fresh(key, env.frozen), {**memory, 'own': own}

  def steps(params, memory, env):
    """The bank with what is trained now in its slot."""
    now = params['prompt']
    if bottleneck is not None:
      now = now + _through(params['mlp'], now)
    return with_slot(memory['bank'], env.task.index, Steps(now, params['head']))

  def features(bank, env, x, key, last):
    """Features [B, D] behind the prompts of tasks up to `last`, [] or [B] int32."""
    together = bank.prompts[::-1].reshape(tasks * length, width)
    of_task = jnp.repeat(jnp.arange(tasks)[::-1], length)
    delta = {
      'hidden': of_task > last[..., None],
      'prompts': {'encoder': PromptDelta(together)},
    }
    return net.features(env.frozen, delta, x, key)

  def answers(params, memory, env, x, key):
    """Features [B, D], logits [T, B, C] of all heads, and tasks [B] of examples, the last one's
    where they are not given: one pass."""
    bank = steps(params, memory, env)
    task = task_or(x, env, jnp.broadcast_to(env.task.index, raw(x).shape[:1]))
    given = isinstance(x, Given) and x.task is not None
    h = features(bank, env, x, key, task if given else jnp.asarray(env.task.index))
    return h, logits_of_tasks(head, bank.heads, h), task

  def forward(params, memory, env, x, key):
    h, each, task = answers(params, memory, env, x, key)
    return Output(of_chosen(each, task), jnp.zeros(h.shape[0]), h)

  def predict(params, memory, env, x):
    if isinstance(x, Given) and x.task is not None:
      _, each, task = answers(params, memory, env, x, None)
      return only(env.task.seen, own_first(each, task, memory['own'], env.task.home))
    bank = steps(params, memory, env)

    def add(i, best):
      logits = head.logits(take(bank.heads, i), features(bank, env, x, None, i))
      return jnp.maximum(best, only(memory['own'][i], logits))

    start = jnp.full((raw(x).shape[0], capacity.classes), -jnp.inf)
    # A traced bound: compiled once, and costs what is filled.
    return only(env.task.seen, jax.lax.fori_loop(0, env.task.index + 1, add, start))

  def end_task(params, memory, env):
    return params, {**memory, 'bank': steps(params, memory, env)}

  plain = from_forward(
    'progressive_prompts',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    predict=predict,
    passes=float,
    renewed=('prompt', *(() if bottleneck is None else ('mlp',)), 'head'),
  )

  def loss(params, memory, env, batch, key):
    return plain.loss(params, memory, env, with_tasks_of_labels(batch, env), key)

  return plain._replace(loss=loss)


def _hidden() -> PeftTransform:
  """Masks inserted tokens that are hidden, [S] or [B, S] bool, from all others."""

  def intercept(hidden: Delta, site: Any, next_fn: Callable[..., Array], *args: Any) -> Array:
    if site.kind != 'tokens' or site.path != 'encoder':
      return next_fn(*args)
    x, mask = args
    behind = x.shape[1] - site.lead - hidden.shape[-1]
    around = [(0, 0)] * (hidden.ndim - 1) + [(site.lead, behind)]
    size = x.shape[1]
    # A hidden token sees itself: no row may be empty.
    seen = ~jnp.pad(hidden, around)[..., None, :] | jnp.eye(size, dtype=bool)
    before = mask.array(size, size) if isinstance(mask, Mask) else mask
    return next_fn(x, seen if before is None else before & seen)

  return PeftTransform(lambda key, sites, params: {}, intercept)


def _new_mlp(key: Key, width: int, hidden: int) -> Mlp:
  """As PyTorch's linear layers start."""
  keys = jax.random.split(key, 4)
  shapes = ((width, hidden), (hidden,), (hidden, width), (width,))
  bounds = (width**-0.5, width**-0.5, hidden**-0.5, hidden**-0.5)
  draw = lambda k, shape, bound: jax.random.uniform(k, shape, minval=-bound, maxval=bound)
  return Mlp(*map(draw, keys, shapes, bounds))


def _through(mlp: Mlp, rows: Array) -> Array:
  return jnp.tanh(rows @ mlp.inner + mlp.inner_bias) @ mlp.outer + mlp.outer_bias
