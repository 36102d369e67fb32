"""L2P: learning to prompt from a pool (Wang et al., 2022, arXiv:2112.08654).

A frozen query selects prompts by their keys; the feature is the mean of the
output at the prompt positions.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  new_head,
  normalised,
  on_frozen_features,
  only,
  raw,
  unit,
  with_query,
)
from pecft_jax.continual.prompts.votes import diversified, nearest, vote
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain, nothing
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.peft.sites import matching_sites
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


class Pool(NamedTuple):
  """M prompts of P tokens, each with the key that it is found by."""

  AXES = {'prompts': ('pool', 'token', 'width'), 'keys': ('pool', 'width')}

  prompts: Array  # [M, P, D]
  keys: Array  # [M, D]


# What training selects prompts by; predictions always select those with the nearest keys.
Selection = Literal['nearest', 'frequency', 'task']


@about(
  'method',
  'prompts',
  Paper('Learning to prompt for continual learning', '2112.08654'),
  needs=('class token',),
  passes='2',
  switches=(
    Switch(
      'batchwise',
      True,
      'all examples of a batch get the prompts that most of them vote for, also at test, where a '
      'batch of one task gives the task away',
      'google-research/l2p, PILOT, mammoth',
    ),
  ),
  tiny={
    '': lambda backbone, capacity: l2p(backbone, capacity, pool=3, length=2, top_k=2),
    'beside lora': lambda backbone, capacity: l2p(
      backbone, capacity, peft=lora('.', rank=3), pool=5, length=2, top_k=3
    ),
    'diversified': lambda backbone, capacity: l2p(
      backbone, capacity, pool=5, length=2, top_k=2, select='frequency', transfer=True
    ),
  },
)
@recorded(defaults={'head': linear})
def l2p(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  pool: int = 10,
  length: int = 10,
  top_k: int = 4,
  pull: float = 1.0,
  select: Selection = 'nearest',
  transfer: bool = False,
  batchwise: bool = False,
) -> ContinualMethod:
  """Trains a pool of prompts, their keys and a head; defaults of google-research/l2p.

  Where tasks have boundaries, training can be made to use other prompts for each of them, which the
  paper does on 5-Datasets. `select='frequency'` is its eq. 4: the distance 1 - cos(query, key) of a
  prompt is multiplied by the share that it has in all selections of past tasks. Among prompts of
  equal products, such as all that were never selected, those with the nearest keys are selected,
  which the paper leaves open. `select='task'` is the authors' code (`use_prompt_mask`): task t
  trains the prompts N t to N t + N - 1, and those with the nearest keys once the pool has no such
  block. At test both select by keys alone.

  Args:
    backbone: frozen; needs the `tokens` site `encoder`.
    capacity: tasks and classes of the sequence.
    peft: another transform to train beside the prompts; none by default.
    head: what classifies features; `linear()` by default.
    pool: M, prompts in the pool.
    length: P, tokens of a prompt.
    top_k: prompts selected for each example.
    pull: weight of the term that draws selected keys to their queries, the
      sum over the selected keys of 1 - cos(query, key).
    select: what training selects prompts by: the `nearest` keys, keys and the `frequency` in past
      tasks, or the `task`.
    transfer: start the prompts N t to N t + N - 1 of task t as a copy of those of the task before,
      while the pool has both blocks, as the authors' code does with `shared_prompt_pool`. Keys
      stay.
    batchwise: select the prompts that most examples of the batch vote for, for
      all of them, also at test. Predictions then depend on what else is in
      the batch, its padding included; where test batches hold one task, it
      leaks the task identity.

  Raises:
    ValueError: for a backbone without that site or without a class token (a
      decoder), `top_k` above `pool`, a length below 1, a negative pull, or a problem as in
      `finetune`.

  >>> from pecft_jax.continual import l2p
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = l2p(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'l2p'
  """
  head = linear() if head is None else head
  need_row_of_answers(capacity.problem, capacity.classes, 'l2p')
  if not 1 <= top_k <= pool:
    raise ValueError(f'top_k must be in 1..pool={pool}, got {top_k}')
  at_least(1, length=length)
  at_least(0, pull=pull)
  (encoder,) = matching_sites(backbone.sites, 'tokens', r'^encoder$')
  if not encoder.site.lead:
    raise ValueError(
      f'l2p reads its prompts in place of a class token, and {backbone.name} has none: '
      'before a causal text they would see nothing of it'
    )
  beside = nothing() if peft is None else peft
  abstract_delta(backbone, beside)
  transform = chain(peft=beside, prompts=_read_at_prompts())
  inserted = top_k * length
  trained = _selector(select, vote if batchwise else nearest, top_k)
  tested = _selector('nearest', vote if batchwise else nearest, top_k)
  # Another transform may insert its own tokens before these.
  rows = 1 + inserted if peft is None else None

  def init(key, frozen):
    k_prompts, k_keys, k_delta = jax.random.split(key, 3)
    prompts = jax.random.uniform(k_prompts, (pool, length, backbone.width), maxval=0.01)
    keys = jax.random.uniform(k_keys, (pool, backbone.width), maxval=0.01)
    delta = beside.init(k_delta, backbone.sites, frozen)
    state = new_head(head, key, backbone, capacity)
    memory = _counts(pool, jnp.zeros(pool)) if select == 'frequency' else {}
    return {'pool': Pool(prompts, keys), 'delta': delta, 'head': state}, memory

  def similarities(params, env, x):
    query = unit(frozen_features(backbone, env.frozen, x))
    return query @ unit(params['pool'].keys).T  # [B, M]

  def run(params, env, x, similarity, chosen, key):
    chosen = jnp.broadcast_to(chosen, (similarity.shape[0], top_k))
    near = jnp.take_along_axis(similarity, chosen, 1)
    prompts = params['pool'].prompts[chosen].reshape(-1, inserted, backbone.width)
    delta = {'peft': params['delta'], 'prompts': prompts}
    features = backbone.apply(
      env.frozen,
      normalised(backbone.inputs, raw(x)),
      delta,
      peft=transform,
      key=key,
      rows=rows,
    ).pooled
    return Output(head.logits(params['head'], features), pull * (1 - near).sum(-1), features)

  def forward(params, memory, env, x, key):
    similarity = similarities(params, env, x)
    return run(params, env, x, similarity, trained(similarity, memory, env), key)

  def answers(params, memory, env, query, x):
    given = with_query(x, query)
    similarity = similarities(params, env, given)
    chosen = tested(similarity, memory, env)
    logits = run(params, env, given, similarity, chosen, None).logits
    return only(env.task.seen, logits) if capacity.problem.classes else logits

  def begin_task(params, memory, env, key):
    del key
    moved = _handed_on(params['pool'].prompts, env.task.index, top_k)
    return {**params, 'pool': params['pool']._replace(prompts=moved)}, memory

  def observe(params, memory, env, batch, out, update, key):
    del out, key
    chosen = trained(similarities(update.before, env, batch.x), memory, env)
    chosen = jnp.broadcast_to(chosen, (batch.valid.shape[0], top_k))
    return params, {**memory, 'now': memory['now'].at[chosen].add(batch.valid[:, None])}

  def end_task(params, memory, env):
    del env
    return params, _counts(pool, memory['past'] + memory['now'])

  counted = {'observe': observe, 'end_task': end_task} if select == 'frequency' else {}
  return from_forward(
    'l2p',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    predict=on_frozen_features(backbone, answers),
    transforms={'delta': beside},
    head=head,
    passes=lambda tasks: 2.0,
    begin_task=begin_task if transfer else None,
    **counted,
  )


def _selector(select: Selection, best: Callable[..., Array], top_k: int) -> Callable[..., Array]:
  """`(similarity [B, M], memory, env) -> prompts`, [B, N], or [N] for all examples."""

  def by_key(similarity, memory, env):
    del memory, env
    return best(similarity, top_k)

  def by_frequency(similarity, memory, env):
    del env
    return best(diversified(similarity, memory['past']), top_k)

  def by_task(similarity, memory, env):
    del memory
    own = env.task.index * top_k + jnp.arange(top_k)
    return jnp.where(own[-1] < similarity.shape[1], own, best(similarity, top_k))

  return {'nearest': by_key, 'frequency': by_frequency, 'task': by_task}[select]


def _counts(pool: int, past: Array) -> dict[str, Array]:
  """Selections of each prompt [M] in past tasks, and none yet in the one that comes."""
  return {'past': past, 'now': jnp.zeros(pool)}


def _handed_on(prompts: Array, index: Array, top_k: int) -> Array:
  """Prompts [M, ...], those of the block of a task a copy of the block before."""
  pool, start = prompts.shape[0], index * top_k
  # What the pool has no block for is written nowhere.
  own = jnp.where((start > 0) & (start + top_k <= pool), start + jnp.arange(top_k), pool)
  return prompts.at[own].set(prompts[own - top_k], mode='drop')


def _read_at_prompts() -> PeftTransform:
  """Inserts prompts [B, P, D] before the encoder, and puts the mean of the outputs at
  the prompts in place of the class token, where the head reads."""

  def intercept(prompts, site, next_fn, *args):
    if site.kind != 'tokens' or site.path != 'encoder':
      return next_fn(*args)
    x, mask = args
    assert mask is None  # Bidirectional encoders only.
    lead, count = site.lead, prompts.shape[1]
    x = jnp.concatenate([x[:, :lead], prompts.astype(x.dtype), x[:, lead:]], 1)
    y = next_fn(x, mask)
    assert y.shape[1] >= lead + count  # All prompts must be among the rows computed.
    mean = y[:, lead : lead + count].mean(1, keepdims=True)
    return jnp.concatenate([mean, y[:, 1:lead], y[:, lead + count :]], 1)

  return PeftTransform(lambda key, sites, params: None, intercept)
