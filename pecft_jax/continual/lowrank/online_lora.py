"""Online-LoRA: task-free online continual learning (Wei et al., 2025, arXiv:2411.05663)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import as_linear, from_forward, mean_of_valid, model, new_head, raw
from pecft_jax.continual.lowrank.sums import added, need_lora, products, summed
from pecft_jax.continual.memory.slots import empty_slots
from pecft_jax.continual.wrappers.importance import summed_over_examples, weighted_squares
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import Problem, need_classes
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Batch,
  Capacity,
  ContinualMethod,
  Head,
  Output,
  PeftTransform,
)


class Hardest(NamedTuple):
  """N stored examples, those of the largest loss first; slots from `count` on are empty."""

  AXES = {'x': ('slot', ...), 'y': ('slot', ...)}

  x: Array  # [N, ...], inputs as training saw them.
  y: Array  # [N]
  count: Array  # [] int32


class Window(NamedTuple):
  """The last W losses, and what is known of the plateau before."""

  losses: Array  # [W], the newest last.
  count: Array  # [] int32, how many there are, up to W.
  mean: Array  # [] of the window in which the last plateau was found.
  deviation: Array  # [] of the same window.
  risen: Array  # [] bool, whether the loss has risen since then.


def _default_peft() -> PeftTransform:
  return lora(r'attn/(q|v)$', rank=4, alpha=4)


_TINY: dict[str, Any] = {
  'size': 3, 'window': 2, 'mean_threshold': 50.0, 'variance_threshold': 50.0,
}  # fmt: skip


@about(
  'method',
  'low-rank',
  Paper('Online-LoRA: task-free online continual learning via low rank adaptation', '2411.05663'),
  needs=('classes', 'LoRA factors', 'stored examples'),
  carries='the sum of past products, d_in x d_out per site, the importance of the factors, a few '
  'examples and losses',
  tiny={
    '': lambda backbone, capacity: online_lora(
      backbone, capacity, peft=lora('.', rank=2, alpha=2), **_TINY
    ),
    'as published': lambda backbone, capacity: online_lora(
      backbone,
      capacity,
      peft=lora('.', rank=2, alpha=2),
      by_factors=True,
      zeroed=True,
      hardest_only=True,
      **_TINY,
    ),
  },
  switches=(
    Switch(
      'by_factors',
      True,
      'the factors of past LoRAs are summed in the place of their products, which adds the '
      'products of each A with the B of others from the second plateau on',
      'Christina200/Online-LoRA-official',
    ),
    Switch(
      'zeroed',
      True,
      'a new LoRA starts with both factors at zero, where its gradient is zero: it leaves that '
      "point by the optimizer's momentum alone",
      'Christina200/Online-LoRA-official',
    ),
    Switch(
      'hardest_only',
      True,
      'the parameters are iterators that the first stored item uses up, so that the others do not '
      'count for the importance',
      'Christina200/Online-LoRA-official',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def online_lora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  strength: float = 2000.0,
  size: int = 4,
  replay: float = 1.0,
  window: int = 5,
  mean_threshold: float = 6.0,
  variance_threshold: float = 0.1,
  by_factors: bool = False,
  zeroed: bool = False,
  hardest_only: bool = False,
) -> ContinualMethod:
  """Trains one LoRA, and merges it and starts another where the loss has a plateau.

  It reads no task boundaries. The loss of a batch is its cross-entropy among all classes seen, plus
  `replay` x the mean over the stored examples, plus strength / 2 x sum Omega theta^2 over the
  factors theta of the LoRA. Stored are the examples of the largest loss, among each batch and those
  stored before.

  The last losses, without the third term, are kept. A plateau is where their mean and variance are
  below their thresholds, if the mean has been above that of the last plateau by more than a
  standard deviation since then. There the squared gradients of log p(c | x), with c the model's own
  answer, are averaged over the stored examples; Omega is the mean of that over all plateaus. Then
  A B is added to the weights, and a fresh LoRA starts. Its factors take over the moments that the
  optimizer had for those before, as in the authors' code.

  Thresholds are in the units of the loss, and have to be set for the data. In the authors' code an
  item of the buffer is not an example but a whole batch, and the mean losses of its 4 items are
  added up: with batches of 64 that is near `size=256` and `replay=4.0`. There a window counts
  before it is full, too, so that the first step of all may be a plateau; the classes of the softmax
  are those of the whole sequence.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on queries and values with rank 4 and scale 1 by default, as in the
      authors' code.
    head: what classifies features; `linear()` by default.
    strength: lambda.
    size: N, examples stored.
    replay: weight of the mean loss of the stored examples.
    window: W, losses kept.
    mean_threshold: of their mean.
    variance_threshold: of their variance.
    by_factors: sum factors instead of products over plateaus.
    zeroed: start later LoRAs with both factors at zero.
    hardest_only: take the importance from the hardest stored example alone.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative strength or
      weight, a size or window below 1, thresholds of 0 or less, or a problem without classes.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import online_lora
  >>> from pecft_jax.typing import Capacity
  >>> online_lora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'online_lora'
  """
  need_classes(capacity.problem, 'online_lora')
  at_least(0, strength=strength, replay=replay)
  at_least(1, size=size, window=window)
  above(0, mean_threshold=mean_threshold, variance_threshold=variance_threshold)
  peft, head = _default_peft() if peft is None else peft, linear() if head is None else head
  problem = capacity.problem
  shapes = need_lora('Online-LoRA', backbone, peft)
  whole = added(shapes)
  current = model(backbone, peft)
  both = model(backbone, chain(past=summed(peft) if by_factors else whole, now=peft))

  def init(key, frozen):
    delta = current.init(key, frozen)
    # One slot, so that `summed` reads it.
    slot = lambda: jax.tree.map(lambda a: jnp.zeros((1, *a.shape)), delta)
    memory = {
      'past': slot() if by_factors else products(peft, jax.tree.map(jnp.zeros_like, delta)),
      'importance': jax.tree.map(jnp.zeros_like, delta),
      'plateaus': jnp.zeros((), jnp.int32),
      'hardest': _no_examples(backbone, problem, size),
      'window': _no_losses(window),
    }
    return {'delta': delta, 'head': new_head(head, key, backbone, capacity)}, memory

  def run(params, delta, memory, env, x, key):
    """Logits [B, C] and features [B, D]."""
    deltas = {'past': jax.lax.stop_gradient(memory['past']), 'now': delta}
    features = both.features(env.frozen, deltas, x, key)
    return head.logits(params['head'], features), features

  def forward(params, memory, env, x, key):
    logits, features = run(params, params['delta'], memory, env, x, key)
    zeros = jax.tree.map(jnp.zeros_like, params['delta'])
    penalty = 0.5 * strength * weighted_squares(memory['importance'], zeros, params['delta'])
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def stored_losses(params, memory, env):
    """Of the stored examples: losses [N], and which there are [N]."""
    x, y, count = memory['hardest']
    logits, _ = run(params, params['delta'], memory, env, x, None)
    return problem.losses(logits, y, env.task.seen), jnp.arange(size) < count

  def loss(params, memory, env, batch, key):
    value, out = plain.loss(params, memory, env, batch, key)
    return value + replay * mean_of_valid(*stored_losses(params, memory, env)), out

  def merged(params, memory, env, key):
    """Params and memory with the importance of the LoRA, and another one in its place."""
    delta, n = params['delta'], memory['plateaus'] + 1

    def surprise(delta, x, y):
      del y
      logits, _ = run(params, delta, memory, env, x, None)
      own = jnp.where(env.task.seen, logits, -jnp.inf).argmax(-1)
      return problem.losses(logits, own, env.task.seen)[0]

    more = _mean_squares(surprise, delta, memory['hardest'], 1 if hardest_only else size)
    new = jax.tree.map(jnp.zeros_like, delta) if zeroed else current.init(key, env.frozen)
    return {**params, 'delta': new}, {
      **memory,
      'past': _with_lora(memory['past'], peft, delta, by_factors),
      'importance': jax.tree.map(lambda old, m: old + (m - old) / n, memory['importance'], more),
      'plateaus': n,
    }

  def observe(params, memory, env, batch, out, update, key):
    # Losses are those that the update was made of.
    old, there = stored_losses(update.before, memory, env)
    allowed = True if env.among is None else env.among
    new = problem.losses(out.logits, batch.y, env.task.seen & allowed)
    total = mean_of_valid(new, batch.valid) + replay * mean_of_valid(old, there)
    seen, plateau = watched(memory['window'], total, mean_threshold, variance_threshold)
    params, after = jax.lax.cond(
      plateau, lambda: merged(params, memory, env, key), lambda: (params, memory)
    )
    hardest = with_harder(memory['hardest'], old, batch, new)
    return params, {**after, 'window': seen, 'hardest': hardest}

  def adapted(params, memory, env):
    del env
    past, now = _as_matrices(memory['past'], peft), products(peft, params['delta'])
    return Adapted(whole, jax.tree.map(jnp.add, past, now), as_linear(head, params['head']))

  plain = from_forward(
    'online_lora',
    backbone,
    capacity,
    init,
    forward,
    masked=False,
    observe=observe,
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
  )
  return plain._replace(loss=loss)


def _no_examples(backbone: Backbone, problem: Problem, size: int) -> Hardest:
  example = jax.ShapeDtypeStruct(backbone.inputs.shape, backbone.inputs.dtype)
  x, y = (empty_slots(size, each, 'buffer') for each in (example, problem.target))
  return Hardest(x, y, jnp.zeros((), jnp.int32))


def _no_losses(window: int) -> Window:
  """The state before the first loss; a first plateau needs no rise before it."""
  zero = lambda: jnp.zeros(())
  return Window(jnp.zeros(window), jnp.zeros((), jnp.int32), zero(), zero(), jnp.ones((), bool))


def _mean_squares(
  surprise: Callable[[Any, Any, Array], Array], delta: Any, hardest: Hardest, most: int
) -> Any:
  """The mean over the hardest examples, up to `most` of them, of squared gradients."""
  x, y, count = hardest
  valid = jnp.arange(y.shape[0]) < jnp.minimum(count, most)
  some = Batch(x, y, valid, jnp.zeros(valid.shape, jnp.int32))
  squares = summed_over_examples(surprise, delta, some, jnp.square)
  return jax.tree.map(lambda each: each / jnp.maximum(valid.sum(), 1), squares)


def _with_lora(past: Any, peft: PeftTransform, delta: Any, by_factors: bool) -> Any:
  """What past LoRAs are, with one more."""
  new = delta if by_factors else products(peft, delta)
  return jax.tree.map(lambda old, each: old + each, past, new)


def _as_matrices(past: Any, peft: PeftTransform) -> dict[str, Array]:
  """What past LoRAs added to the weights of each site, if they are kept as factors, too."""
  if not any(isinstance(each, LoraDelta) for each in past.values()):
    return past
  return products(peft, {path: LoraDelta(each.a[0], each.b[0]) for path, each in past.items()})


def watched(
  window: Window, loss: Array, mean_threshold: float, variance_threshold: float
) -> tuple[Window, Array]:
  """A window with one more loss, and whether there is a plateau: [] bool.

  Args:
    window: W losses, or fewer at the start, when there is no plateau.
    loss: []
    mean_threshold: what the mean of a plateau is below.
    variance_threshold: what its variance is below.

  >>> window, found = _no_losses(2), []
  >>> for loss in (9.0, 1.0, 1.2, 1.1, 1.1, 3.0, 1.5, 1.4):
  ...   window, plateau = watched(window, jnp.array(loss), 2.0, 0.1)
  ...   found.append(bool(plateau))
  >>> found
  [False, False, True, False, False, False, False, True]
  """
  losses = jnp.roll(window.losses, -1).at[-1].set(loss)
  count = jnp.minimum(window.count + 1, losses.size)
  mean, variance = losses.mean(), losses.var()
  risen = window.risen | (mean > window.mean + window.deviation)
  low = (mean < mean_threshold) & (variance < variance_threshold)
  plateau = low & risen & (count == losses.size)
  choose = lambda new, old: jnp.where(plateau, new, old)
  return Window(
    losses,
    count,
    choose(mean, window.mean),
    choose(jnp.sqrt(variance), window.deviation),
    risen & ~plateau,
  ), plateau


def with_harder(hardest: Hardest, losses: Array, batch: Batch, new: Array) -> Hardest:
  """The examples of the largest loss among those stored and a batch.

  Args:
    hardest: N examples.
    losses: [N] of them.
    batch: B examples; rows that are not valid are not stored.
    new: [B], losses of the batch.
  """
  size = losses.shape[0]
  there = jnp.concatenate([jnp.arange(size) < hardest.count, batch.valid])
  ranked = jnp.where(there, jnp.concatenate([losses, new]), -jnp.inf)
  index = jax.lax.top_k(ranked, size)[1]
  count = jnp.minimum(there.sum(dtype=jnp.int32), size)

  def chosen(old: Array, more: Array) -> Array:
    rows = jnp.concatenate([old, more.astype(old.dtype)])[index]
    filled = (jnp.arange(size) < count).reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(filled, rows, jnp.zeros((), rows.dtype))

  return Hardest(chosen(hardest.x, raw(batch.x)), chosen(hardest.y, batch.y), count)
