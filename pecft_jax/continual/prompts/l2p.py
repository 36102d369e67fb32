"""L2P: learning to prompt from a pool (Wang et al., 2022, arXiv:2112.08654).

A frozen query selects prompts by their keys; the feature is the mean of the
output at the prompt positions.
"""

from typing import NamedTuple

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
from pecft_jax.continual.prompts.votes import vote
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
  batchwise: bool = False,
) -> ContinualMethod:
  """Trains a pool of prompts, their keys and a head; defaults of google-research/l2p.

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
  # Another transform may insert its own tokens before these.
  rows = 1 + inserted if peft is None else None

  def init(key, frozen):
    k_prompts, k_keys, k_delta = jax.random.split(key, 3)
    prompts = jax.random.uniform(k_prompts, (pool, length, backbone.width), maxval=0.01)
    keys = jax.random.uniform(k_keys, (pool, backbone.width), maxval=0.01)
    delta = beside.init(k_delta, backbone.sites, frozen)
    state = new_head(head, key, backbone, capacity)
    return {'pool': Pool(prompts, keys), 'delta': delta, 'head': state}, {}

  def forward(params, memory, env, x, key):
    del memory
    query = unit(frozen_features(backbone, env.frozen, x))
    similarity = query @ unit(params['pool'].keys).T  # [B, M]
    if batchwise:
      chosen = vote(similarity, top_k)
      near = similarity[:, chosen]
      prompts = params['pool'].prompts[chosen].reshape(1, inserted, -1)
      prompts = jnp.broadcast_to(prompts, (query.shape[0], *prompts.shape[1:]))
    else:
      near, chosen = jax.lax.top_k(similarity, top_k)
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

  def answers(params, memory, env, query, x):
    logits = forward(params, memory, env, with_query(x, query), None).logits
    return only(env.task.seen, logits) if capacity.problem.classes else logits

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
  )


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
