"""EWC-LoRA: elastic weight consolidation of low-rank products (Zheng et al., 2026,
arXiv:2602.17559).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, Switch, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import as_linear, from_forward, mean_of_valid, model, new_head
from pecft_jax.continual.lowrank.sums import added, need_lora, products, summed
from pecft_jax.continual.wrappers.importance import summed_over_examples, weighted_squares
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import need_row_of_answers
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


def _default_peft() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper('Revisiting weight regularization for low-rank continual learning', '2602.17559'),
  needs=('LoRA factors',),
  carries='the sum of past products and its Fisher information, d_in x d_out per site',
  tiny={
    '': lambda backbone, capacity: ewclora(backbone, capacity, peft=lora('.', rank=2, alpha=2)),
    'of batches': lambda backbone, capacity: ewclora(
      backbone, capacity, peft=lora('.', rank=2, alpha=2), per_example=False, by_factors=True
    ),
  },
  switches=(
    Switch(
      'by_factors',
      True,
      'the factors of past tasks are summed in the place of their products, which adds the '
      'products of each A with the B of other tasks from the third task on',
      'yaoyz96/low-rank-cl',
    ),
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def ewclora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  strength: float = 1e5,
  decay: float = 1.0,
  per_example: bool = True,
  by_factors: bool = False,
) -> ContinualMethod:
  """Trains one LoRA per task, whose product is held back where past tasks are sensitive to it.

  The loss has strength / 2 x sum F (A B)^2, with F [d_in, d_out] the diagonal empirical Fisher
  information of the *product*, that is of the weight matrix, instead of one of A and one of B.
  After each task a pass over its data gives F_t, the squared gradients of the log-likelihood of the
  true label among the task's own classes; then F <- decay x F + F_t, A B is added to the weights,
  and the LoRA starts anew.

  F_t is the mean over examples of squares. The authors' code squares the mean gradient of each
  batch instead (`per_example=False`), which depends on the batch size: with independent gradients
  it is smaller by the size of the batch. Their strength of 1e7 goes with batches of 128, and
  divided by 128 it is near the default here. The code takes augmented images, here they are as
  they are.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on keys and values with rank 10 and scale 1 by default, as in the
      authors' code.
    head: what classifies features; `linear()` by default.
    strength: lambda.
    decay: gamma; 1 weights all past tasks equally.
    per_example: square the gradients of examples; else those of batches, times their size.
    by_factors: sum factors instead of products over tasks.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative strength, a
      decay outside [0, 1], or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import ewclora
  >>> from pecft_jax.typing import Capacity
  >>> ewclora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'ewclora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'ewclora')
  at_least(0, strength=strength)
  if not 0 <= decay <= 1:
    raise ValueError(f'expected a decay in [0, 1], got {decay}')
  problem = capacity.problem
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('EWC-LoRA', backbone, peft)
  whole = added(shapes)
  changed = model(backbone, whole)
  current = model(backbone, peft)
  both = model(backbone, chain(past=summed(peft) if by_factors else whole, now=peft))

  def matrices():
    return {path: jnp.zeros((each.a.shape[0], each.b.shape[1])) for path, each in shapes.items()}

  def init(key, frozen):
    delta = current.init(key, frozen)
    params = {'delta': delta, 'head': new_head(head, key, backbone, capacity)}
    # One slot, so that `summed` reads it.
    slot = lambda each: jax.tree.map(lambda a: jnp.zeros((1, *a.shape)), each)
    past = {path: slot(each) for path, each in delta.items()} if by_factors else matrices()
    memory = {'past': past, 'fisher': matrices(), 'squares': matrices(), 'count': jnp.zeros(())}
    return params, memory

  def begin_task(params, memory, env, key):
    return {**params, 'delta': current.init(key, env.frozen)}, memory

  def forward(params, memory, env, x, key):
    delta = {'past': jax.lax.stop_gradient(memory['past']), 'now': params['delta']}
    features = both.features(env.frozen, delta, x, key)
    logits = head.logits(params['head'], features)
    new = products(peft, params['delta'])
    penalty = 0.5 * strength * weighted_squares(memory['fisher'], matrices(), new)
    return Output(logits, jnp.broadcast_to(penalty, logits.shape[:1]), features)

  def past_change(memory):
    """What past tasks added to the weights of each site."""
    if not by_factors:
      return memory['past']
    first = lambda slots: LoraDelta(slots.a[0], slots.b[0])
    return products(peft, {path: first(slots) for path, slots in memory['past'].items()})

  def consolidate(params, memory, env, batch):
    new, past = products(peft, params['delta']), past_change(memory)

    def losses(change, x, y):
      logits = head.logits(params['head'], changed.features(env.frozen, change, x))
      return problem.losses(logits, y, env.task.classes)

    more = _squares(losses, {path: past[path] + new[path] for path in new}, batch, per_example)
    squares = jax.tree.map(jnp.add, memory['squares'], more)
    return {**memory, 'squares': squares, 'count': memory['count'] + batch.valid.sum()}

  def end_task(params, memory, env):
    del env
    delta, count = params['delta'], jnp.maximum(memory['count'], 1)
    if by_factors:
      past = jax.tree.map(lambda old, new: old + new, memory['past'], delta)
    else:
      new = products(peft, delta)
      past = {path: old + new[path] for path, old in memory['past'].items()}
    # The product now acts through the sum; acting twice would double it.
    params = {**params, 'delta': jax.tree.map(jnp.zeros_like, delta)}
    more = lambda old, squares: decay * old + squares / count
    return params, {
      'past': past,
      'fisher': jax.tree.map(more, memory['fisher'], memory['squares']),
      'squares': matrices(),
      'count': jnp.zeros(()),
    }

  def adapted(params, memory, env):
    del env
    return Adapted(whole, past_change(memory), as_linear(head, params['head']))

  return from_forward(
    'ewclora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    adapted=adapted,
    transforms={'delta': peft},
    head=head,
    renewed=('delta',),
  )


def _squares(
  losses: Callable[[Any, Any, Array], Array], change: Any, batch: Batch, per_example: bool
) -> Any:
  """Squared gradients, summed over the examples of a batch; of their mean, times their number.

  Args:
    losses: `(change, x, y) -> [B]`.
    change: what is differentiated.
    batch: rows that are not valid do not count.
    per_example: square before the sum.
  """
  if per_example:
    return summed_over_examples(lambda *args: losses(*args)[0], change, batch, jnp.square)
  mean = lambda change: mean_of_valid(losses(change, batch.x, batch.y), batch.valid)
  return jax.tree.map(lambda g: batch.valid.sum() * jnp.square(g), jax.grad(mean)(change))
