"""SEMA: self-expansion with a mixture of adapters (Wang et al., 2025, arXiv:2403.18886).

Each block has adapters, of which a router makes a mixture for each example. Each adapter
has a descriptor, an autoencoder of the inputs of its block while it was trained. Where a
task's data differ from what all descriptors of a block were trained on, the block gets one more
adapter.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.adapters.mixture import (
  Expert,
  Mixture,
  mean_token,
  mixed,
  slots_of,
  with_new,
)
from pecft_jax.continual.core import (
  from_forward,
  mean_of_valid,
  model,
  new_head,
)
from pecft_jax.continual.memory.novelty import (
  Spread,
  fresh_descriptor,
  reconstruction_errors,
  with_errors,
  z_scores,
)
from pecft_jax.heads import linear
from pecft_jax.peft.adapters.bottleneck import Read, adaptformer
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Backbone,
  Capacity,
  ContinualMethod,
  Fit,
  Head,
  Once,
  Output,
  PeftTransform,
)


@about(
  'method',
  'adapters',
  Paper(
    'Self-expansion of pre-trained models with mixture of adapters for continual learning',
    '2403.18886',
  ),
  needs=('adapters', 'classes'),
  carries='adapters and their descriptors, one or more per block',
  tiny=lambda backbone, capacity: sema(
    backbone,
    capacity,
    peft=adaptformer(width=2),
    experts=2,
    growing=1,
    threshold=0.5,
    hidden=3,
    descriptor_epochs=1,
  ),
)
@recorded(
  defaults={
    'peft': lambda: adaptformer(width=16),
    'head': linear,
    'descriptor': lambda: sgd(1e-2),
  }
)
def sema(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  read: Read = 'normed',
  experts: int = 5,
  growing: int = 3,
  threshold: float = 2.0,
  hidden: int = 128,
  descriptor: Recipe | None = None,
  descriptor_epochs: int = 20,
) -> ContinualMethod:
  """Adds adapters where a task's data differ from those of all adapters, and trains only these.

  A pass before training gives the z-scores of the task's data under each descriptor: how
  many standard deviations its error is from its mean on the data that it was trained on. A block
  grows where the mean of |z| is above the threshold for all of its adapters. New adapters and
  router columns train with the head; old ones never change. Descriptors of new adapters then have
  a fit of their own.

  Departures from the authors' code: z-scores are of the whole task, so that no order or batch
  decides, and all blocks decide at once. There a block that grows is trained before the blocks
  after it decide, which takes one training per block that grows. Errors' mean and deviation are
  those of the trained descriptor, of all data of its task. Adapters, router and descriptors read
  the normalised input of the MLP, there what comes before the norm (`read='residual'`); and there
  an adapter has no scale, which is `adaptformer(width=16, scale=1.0)`.

  Adapters of blocks that do not grow learn the first task and stay as they are. Where that task is
  small they cost more than they give: put adapters into the growing blocks alone, as in
  `at_layers(adaptformer(width=16), [9, 10, 11])`.

  The mean token that the router and the descriptors read is that of all tokens, pads of texts
  included.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what an expert is: a bottleneck adapter without dropout, `adaptformer(width=16)` by
      default. Blocks that do not grow have one expert, which the first task trains.
    head: what classifies features; `linear()` by default.
    read: what router and descriptors read, `normed` or `residual`; give the adapters the same, as
      in `adaptformer(width=16, read='residual')`.
    experts: E, maximum number in one block.
    growing: number of last blocks that may grow.
    threshold: of |z|.
    hidden: H, width of the descriptors.
    descriptor: how descriptors are trained, `sgd(1e-2)` by default.
    descriptor_epochs: passes over the task's data for that.

  Raises:
    ValueError: for a transform that is no such adapter or finds no site, for fewer than one
      expert, for adapters in none of the growing blocks, or a problem without classes.

  Example:
    >>> from pecft_jax.backbones import vit
    >>> small = vit(
    ...   image_size=8, patch=4, width=8, depth=2, heads=2, mean=(0.5,) * 3, std=(0.5,) * 3
    ... )
    >>> method = sema(small, Capacity(tasks=3, classes=6), growing=1)
    >>> [phase.name for phase in method.phases]
    ['decide', 'describe']
  """
  need_classes(capacity.problem, 'sema')
  peft, head = adaptformer(width=16) if peft is None else peft, linear() if head is None else head
  descriptor = sgd(1e-2) if descriptor is None else descriptor
  _check_positive(
    experts=experts, growing=growing, hidden=hidden, descriptor_epochs=descriptor_epochs
  )
  slots = slots_of(backbone, peft, experts, growing)
  no_scan = lambda: _no_scan({p: slots[p] for p in grown})
  grown = [path for path, count in slots.items() if count > 1 or experts == 1]
  net, width = model(backbone, mixed(peft, backbone, slots, read)), backbone.width

  def watch(site, args, out):
    del out
    there = site.kind == 'sublayer' and site.path in grown
    return mean_token(args, read) if there else None

  def fresh(key, frozen):
    k_adapter, k_coder = jax.random.split(key)
    adapters = peft.init(k_adapter, backbone.sites, frozen)
    keys = jax.random.split(k_coder, len(grown))
    return {
      'new': {p: Expert(adapters[p], jnp.zeros(width), jnp.zeros(())) for p in slots},
      'coder': {p: fresh_descriptor(k, width, hidden) for p, k in zip(grown, keys, strict=True)},
    }

  def init(key, frozen):
    params = {**fresh(key, frozen), 'head': new_head(head, key, backbone, capacity)}
    room = lambda p, tree: jax.tree.map(lambda a: jnp.zeros((slots[p], *a.shape), a.dtype), tree)
    memory = {
      'experts': {p: room(p, expert) for p, expert in params['new'].items()},
      'coders': {p: room(p, coder) for p, coder in params['coder'].items()},
      'errors': {p: Spread(*(jnp.zeros(slots[p]) for _ in range(3))) for p in grown},
      'used': {p: jnp.zeros((), jnp.int32) for p in slots},
      'grows': {p: jnp.zeros((), bool) for p in slots},
      **no_scan(),
    }
    return params, memory

  def begin_task(params, memory, env, key):
    return {**params, **fresh(key, env.frozen)}, memory

  def added(memory, p):
    """The slot [E] bool that the current task fills, if the block grows."""
    return (jnp.arange(slots[p]) == memory['used'][p]) & memory['grows'][p]

  def mixtures(params, memory):
    def one(p):
      now = added(memory, p)
      bank = jax.lax.stop_gradient(memory['experts'][p])
      active = (jnp.arange(slots[p]) < memory['used'][p]) | now
      return Mixture(with_new(bank, params['new'][p], now), active)

    return {p: one(p) for p in slots}

  def run(params, memory, env, x, key=None, watch=None):
    return net.run(env.frozen, mixtures(params, memory), x, key, watch=watch, rows=None)

  def tokens(params, memory, env, x):
    taps = run(params, memory, env, x, watch=watch).taps
    return {p: taps[f'sublayer:{p}'] for p in grown}

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def prepare(params, memory, env, batch):
    seen = tokens(params, memory, env, batch.x)

    def one(p):
      errors = jax.vmap(reconstruction_errors, (0, None))(memory['coders'][p], seen[p])  # [E, B]
      return jnp.where(batch.valid, z_scores(memory['errors'][p], errors), 0).sum(1)

    novelty = {p: memory['novelty'][p] + one(p) for p in grown}
    return {**memory, 'novelty': novelty, 'scanned': memory['scanned'] + batch.valid.sum()}

  def describe(params, memory, env, batch, key):
    del key
    seen = tokens(params, memory, env, batch.x)
    errors = sum(
      jnp.where(memory['grows'][p], reconstruction_errors(params['coder'][p], seen[p]), 0)
      for p in grown
    )
    return mean_of_valid(jnp.asarray(errors), batch.valid)

  def consolidate(params, memory, env, batch):
    seen = tokens(params, memory, env, batch.x)

    def one(p):
      errors = reconstruction_errors(params['coder'][p], seen[p])
      return with_errors(memory['errors'][p], errors, batch.valid, added(memory, p))

    return {**memory, 'errors': {p: one(p) for p in grown}}

  def end_task(params, memory, env):
    del env
    put = lambda p, bank, new: with_new(bank, new, added(memory, p))
    return params, {
      **memory,
      'experts': {p: put(p, bank, params['new'][p]) for p, bank in memory['experts'].items()},
      'coders': {p: put(p, bank, params['coder'][p]) for p, bank in memory['coders'].items()},
      'used': {p: memory['used'][p] + memory['grows'][p] for p in slots},
      'grows': {p: jnp.zeros((), bool) for p in slots},
    }

  return from_forward(
    'sema',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    prepare=prepare,
    phases=(
      _decision(slots, threshold),
      Fit('describe', describe, 'train', descriptor, trains=('coder',), epochs=descriptor_epochs),
    ),
    consolidate=consolidate,
    end_task=end_task,
    head=head,
    renewed=('new', 'coder'),
  )


def _check_positive(**counts: int) -> None:
  for name, count in counts.items():
    if count < 1:
      raise ValueError(f'{name} must be at least 1, got {count}')


def _no_scan(slots: dict[str, int]) -> dict[str, Any]:
  """Sums over a task's data before it is trained: of |z|, and their number."""
  return {'novelty': {p: jnp.zeros(n) for p, n in slots.items()}, 'scanned': jnp.zeros(())}


def _decision(slots: dict[str, int], threshold: float) -> Once:
  """The phase in which blocks decide whether they grow."""

  def decide(params, memory, env, key):
    del env, key
    novelty, scanned = memory['novelty'], memory['scanned']

    def one(p):
      used = memory['used'][p]
      if p not in novelty:
        return used == 0
      means = novelty[p] / jnp.maximum(scanned, 1)
      nearest = jnp.where(jnp.arange(slots[p]) < used, means, jnp.inf).min()
      return (nearest > threshold) & (used < slots[p])

    scan = _no_scan({p: slots[p] for p in novelty})
    return params, {**memory, 'grows': {p: one(p) for p in slots}, **scan}

  return Once('decide', decide, after='prepare')
