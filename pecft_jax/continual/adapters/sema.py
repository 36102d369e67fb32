"""SEMA: self-expansion with a mixture of adapters (Wang et al., 2025, arXiv:2403.18886).

Each block has adapters, of which a router makes a mixture for each example. Each adapter
has a descriptor, an autoencoder of what arrived at its block while it was learnt. Where a
task's data look unlike all that the descriptors of a block know, the block gets an adapter more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  head_logits,
  mean_of_valid,
  model,
  zero_head,
)
from pecft_jax.peft.adapters.bottleneck import BottleneckDelta, adaptformer
from pecft_jax.problems import need_classes
from pecft_jax.recipes import Recipe, sgd
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Fit,
  Key,
  Once,
  Output,
  PeftTransform,
)


class Expert(NamedTuple):
  """An adapter with its column of the router."""

  adapter: BottleneckDelta
  column: Array  # [D], zeros at init.
  bias: Array  # [], zero at init.


class Mixture(NamedTuple):
  """E experts of a block, stacked on a leading axis, of which some are in use."""

  experts: Expert  # [E, ...]
  active: Array  # [E] bool


class Descriptor(NamedTuple):
  """A linear autoencoder of mean tokens."""

  down: Array  # [D, H], uniform in +-sqrt(1 / D) at init.
  down_bias: Array  # [H], zeros at init.
  up: Array  # [H, D], uniform in +-sqrt(1 / H) at init.
  up_bias: Array  # [D], zeros at init.


class Spread(NamedTuple):
  """Mean and centred squares of the errors of E descriptors."""

  count: Array  # [E]
  mean: Array  # [E]
  squares: Array  # [E], the sum of (error - mean)^2.


@about(
  'method',
  'adapters',
  Paper(
    'Self-expansion of pre-trained models with mixture of adapters for continual learning',
    '2403.18886',
  ),
  needs=('adapters',),
  carries='adapters with their descriptors, as many as the data asked for',
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
@recorded(defaults={'peft': lambda: adaptformer(width=16), 'descriptor': lambda: sgd(1e-2)})
def sema(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  experts: int = 5,
  growing: int = 3,
  threshold: float = 2.0,
  hidden: int = 128,
  descriptor: Recipe | None = None,
  descriptor_epochs: int = 20,
) -> ContinualMethod:
  """Adds adapters where a task's data are unlike those of all adapters, and trains just these.

  A pass before training gives the z-scores of the task's data under each descriptor: how
  many standard deviations its error is from its mean on the data that it was trained on. A block
  grows where the mean of |z| is above the threshold for all of its adapters. New adapters and
  router columns train with the head; old ones never change. Descriptors of new adapters then have
  a fit of their own.

  Departures from the authors' code: z-scores are of the whole task, so that no order or batch
  decides, and all blocks decide at once. There a block that grows is trained before the blocks
  behind it decide, which takes as many trainings as blocks that grow. Errors' mean and
  deviation are those of the trained descriptor, of all data of its task.

  The mean token that the router and the descriptors read is that of all tokens, pads of texts
  included.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: what an expert is: a bottleneck adapter without dropout, `adaptformer(width=16)` by
      default. Blocks that do not grow have one expert, which the first task trains.
    experts: E, the most in one block.
    growing: the last so many blocks may grow.
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
  peft = adaptformer(width=16) if peft is None else peft
  descriptor = sgd(1e-2) if descriptor is None else descriptor
  _check_positive(hidden=hidden, descriptor_epochs=descriptor_epochs)
  slots = _slots_of(backbone, peft, experts, growing)
  no_scan = lambda: _no_scan({p: slots[p] for p in grown})
  grown = [path for path, count in slots.items() if count > 1 or experts == 1]
  net, width = model(backbone, _mixed(peft, backbone, slots)), backbone.width

  def watch(site, args, out):
    del out
    there = site.kind == 'sublayer' and site.path in grown
    return jax.lax.stop_gradient(args[0]).astype(jnp.float32).mean(1) if there else None

  def fresh(key, frozen):
    k_adapter, k_coder = jax.random.split(key)
    adapters = peft.init(k_adapter, backbone.sites, frozen)
    keys = jax.random.split(k_coder, len(grown))
    return {
      'new': {p: Expert(adapters[p], jnp.zeros(width), jnp.zeros(())) for p in slots},
      'coder': {p: _descriptor(k, width, hidden) for p, k in zip(grown, keys, strict=True)},
    }

  def init(key, frozen):
    params = {**fresh(key, frozen), 'head': zero_head(width, capacity.classes)}
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
    """The slot [E] bool that the task at hand fills, if the block grows."""
    return (jnp.arange(slots[p]) == memory['used'][p]) & memory['grows'][p]

  def mixtures(params, memory):
    def one(p):
      now = added(memory, p)
      bank = jax.lax.stop_gradient(memory['experts'][p])
      active = (jnp.arange(slots[p]) < memory['used'][p]) | now
      return Mixture(_with_new(bank, params['new'][p], now), active)

    return {p: one(p) for p in slots}

  def run(params, memory, env, x, key=None, watch=None):
    return net.run(env.frozen, mixtures(params, memory), x, key, watch=watch, rows=None)

  def tokens(params, memory, env, x):
    taps = run(params, memory, env, x, watch=watch).taps
    return {p: taps[f'sublayer:{p}'] for p in grown}

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head_logits(params['head'], features)
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
    put = lambda p, bank, new: _with_new(bank, new, added(memory, p))
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
    renewed=('new', 'coder'),
  )


def reconstruction_errors(coder: Descriptor, tokens: Array) -> Array:
  """The mean squared error [B] of a descriptor on mean tokens [B, D]."""
  code = jnp.matmul(tokens, coder.down, precision='highest') + coder.down_bias
  again = jnp.matmul(code, coder.up, precision='highest') + coder.up_bias
  return jnp.square(again - tokens).mean(-1)


def z_scores(errors: Spread, new: Array) -> Array:
  """|new - mean| / deviation of [E, B]; 0 for descriptors that know fewer than three errors."""
  deviation = jnp.sqrt(errors.squares / jnp.maximum(errors.count - 1, 1))
  away = jnp.abs(new - errors.mean[:, None]) / jnp.maximum(deviation, 1e-12)[:, None]
  return jnp.where(errors.count[:, None] > 2, away, 0)


def with_errors(spread: Spread, errors: Array, valid: Array, at: Array) -> Spread:
  """With a batch of errors [B] more for the descriptors `at` [E] bool (Chan et al., 1983)."""
  many = valid.sum(dtype=jnp.float32)
  mean = mean_of_valid(errors, valid)
  squares = jnp.where(valid, jnp.square(errors - mean), 0).sum()
  count = spread.count + many
  share, away = many / jnp.maximum(count, 1), mean - spread.mean
  new = Spread(
    count, spread.mean + share * away, spread.squares + squares + away**2 * share * spread.count
  )
  return jax.tree.map(lambda a, b: jnp.where(at, a, b), new, spread)


def _with_new(bank: Any, new: Any, at: Array) -> Any:
  """A bank [E, ...] with a tree in the slots `at` [E] bool."""

  def put(old: Array, one: Array) -> Array:
    return jnp.where(at.reshape(-1, *[1] * one.ndim), one, old)

  return jax.tree.map(put, bank, new)


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


def _slots_of(
  backbone: Backbone, peft: PeftTransform, experts: int, growing: int
) -> dict[str, int]:
  """Experts of each adapted branch, by path."""
  _check_positive(experts=experts, growing=growing)
  delta = abstract_delta(backbone, peft)
  leaves = list(delta.values()) if isinstance(delta, dict) else [delta]
  if not leaves or not all(isinstance(leaf, BottleneckDelta) for leaf in leaves):
    kinds = sorted({type(leaf).__name__ for leaf in leaves})
    raise ValueError(
      'SEMA needs a transform whose delta is a bottleneck adapter at every site, such as '
      f'adaptformer(...); got a delta of {kinds or "nothing"}'
    )
  if peft.with_dropout is not None:
    raise ValueError('SEMA mixes adapters without dropout, got one with dropout')
  layer = {spec.site.path: spec.site.layer or 0 for spec in backbone.sites}
  first = backbone.depth - growing
  if all(layer[path] < first for path in delta):
    raise ValueError(
      f'expected adapters in the last {growing} of {backbone.depth} blocks, which may grow; got '
      f'them in blocks {sorted({layer[path] for path in delta})}'
    )
  return {path: experts if layer[path] >= first else 1 for path in delta}


def _descriptor(key: Key, width: int, hidden: int) -> Descriptor:
  k_down, k_up = jax.random.split(key)
  spread = lambda key, rows, columns: jax.random.uniform(
    key, (rows, columns), minval=-(rows**-0.5), maxval=rows**-0.5
  )
  return Descriptor(
    spread(k_down, width, hidden), jnp.zeros(hidden), spread(k_up, hidden, width), jnp.zeros(width)
  )


def _mixed(peft: PeftTransform, backbone: Backbone, slots: dict[str, int]) -> PeftTransform:
  """Experts at each site of an adapter, mixed for each example by its mean token."""
  run_one = peft.intercept
  assert run_one is not None

  def init(key, sites, params):
    def stacked(p, a):
      return jnp.zeros((slots[p], *a.shape), a.dtype)

    width = backbone.width
    one = lambda adapter: Expert(adapter, jnp.zeros(width), jnp.zeros(()))
    return {
      p: Mixture(
        jax.tree.map(lambda a, p=p: stacked(p, a), one(adapter)), jnp.zeros(slots[p], bool)
      )
      for p, adapter in peft.init(key, sites, params).items()
    }

  def intercept(delta, site, next_fn, *args):
    if site.kind != 'sublayer' or site.path not in delta:
      return next_fn(*args)
    mixture, y = delta[site.path], next_fn(*args)
    gate = gates(mixture, args[0]).astype(y.dtype)

    def add(total, expert):
      adapter, weight = expert
      # An adapter reads what goes into the branch or what comes out, and adds to it.
      out = run_one({site.path: adapter}, site, lambda *_: y, *args)
      return total + weight[:, None, None] * (out - y), None

    # Experts are computed anew in the backward pass: kept is what they read, once.
    add = jax.checkpoint(add, prevent_cse=False)
    return y + jax.lax.scan(add, jnp.zeros_like(y), (mixture.experts.adapter, gate.T))[0]

  return PeftTransform(init, intercept)


def gates(mixture: Mixture, x: Array) -> Array:
  """The weight of each expert for each example [B, E], of tokens [B, T, D]; 0 of unused ones."""
  experts, active = mixture.experts, mixture.active
  mean = x.astype(jnp.float32).mean(1)
  scores = jnp.matmul(mean, experts.column.T, precision='highest') + experts.bias
  return jax.nn.softmax(jnp.where(active, scores, -1e9)) * active
