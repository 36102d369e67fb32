"""SplitLoRA: gradient space splitting (Qiu et al., 2025, arXiv:2505.22370).

Each task learns W + A_t B_t with A_t [d_in, r] random within the directions that old inputs hardly
have, and fixed; B_t is trained.
"""

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import above, at_least
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.inflora import second_moments
from pecft_jax.continual.lowrank.sums import added, need_lora, products
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.peft.sites import site_key
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Key,
  Output,
  PeftTransform,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper(
    'SplitLoRA: balancing stability and plasticity in continual learning through gradient space '
    'splitting',
    '2505.22370',
  ),
  needs=('LoRA factors',),
  carries='the sum of past products, second moments of inputs and the projector on their minor '
  'directions, two d_in x d_in per site',
  tiny=lambda backbone, capacity: splitlora(
    backbone, capacity, peft=lora('.', rank=2, alpha=2), balance=1.0
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def splitlora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  balance: float = 20.0,
  temperature: float = 1.0,
) -> ContinualMethod:
  """Learns each task in a LoRA whose down-projection is random among minor directions of the past.

  After each task a pass over its data, with the new weights, adds to the second moments of the
  inputs of every site, which are those of all tasks so far; gradients of a linear layer lie in the
  span of its inputs. Of their d eigenvectors the k last are minor, with k the minimum of
  t x (share of the trace that the k last hold) - balance x k / d after t tasks: what may be
  forgotten against what may be learned. The next task's A is a Gaussian combination of them, with
  the norm of a fresh A divided by the number of the task. The first task has a fresh A. The
  training softmax is over the task's own classes.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on keys and values with rank 10 and scale 1 by default, as in the
      authors' code.
    head: what classifies features; `linear()` by default.
    balance: alpha; higher for more minor directions.
    temperature: logits are divided by it; 30 in the authors' code.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a negative balance, a
      temperature of 0 or less, or a problem as in `finetune`.

  >>> from pecft_jax.backbones import architecture
  >>> from pecft_jax.continual import splitlora
  >>> from pecft_jax.typing import Capacity
  >>> splitlora(architecture('vit_glyphs16'), Capacity(tasks=5, classes=10)).name
  'splitlora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'splitlora')
  at_least(0, balance=balance)
  above(0, temperature=temperature)
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('SplitLoRA', backbone, peft)
  whole = added(shapes)
  current = model(backbone, peft)
  both = model(backbone, chain(past=whole, now=peft))
  squares = lambda: {path: jnp.zeros((each.a.shape[0],) * 2) for path, each in shapes.items()}

  def init(key, frozen):
    fresh = current.init(key, frozen)
    params = {
      'up': {path: jnp.zeros_like(each.b) for path, each in fresh.items()},
      'head': new_head(head, key, backbone, capacity),
    }
    return params, {
      'past': jax.tree.map(jnp.zeros_like, products(peft, fresh)),
      'down': {path: each.a for path, each in fresh.items()},
      'moments': squares(),
      'minor': squares(),
    }

  def begin_task(params, memory, env, key):
    t, fresh = env.task.index, current.init(key, env.frozen)

    def down(path: str) -> Array:
      drawn = drawn_within(site_key(key, path), memory['minor'][path], fresh[path].a, t + 1)
      return jnp.where(t == 0, fresh[path].a, drawn)

    params = {**params, 'up': jax.tree.map(jnp.zeros_like, params['up'])}
    return params, {**memory, 'down': {path: down(path) for path in fresh}}

  def now(params, memory):
    down = jax.lax.stop_gradient(memory['down'])
    return {path: LoraDelta(down[path], params['up'][path]) for path in shapes}

  def run(params, memory, env, x, key, watch=None, rows: int | None = 1):
    delta = {'past': jax.lax.stop_gradient(memory['past']), 'now': now(params, memory)}
    return both.run(env.frozen, delta, x, key, watch=watch, rows=rows)

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head.logits(params['head'], features) / temperature
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def consolidate(params, memory, env, batch):
    watch = second_moments(shapes, batch.valid)
    taps = run(params, memory, env, batch.x, None, watch, rows=None).taps
    moments = {path: memory['moments'][path] + taps[f'linear:{path}'] for path in shapes}
    return {**memory, 'moments': moments}

  def end_task(params, memory, env):
    learned = env.task.index + 1
    past = jax.tree.map(jnp.add, memory['past'], products(peft, now(params, memory)))
    minor = jax.tree.map(lambda h: minor_space(h, learned, balance), memory['moments'])
    # The product now acts through the sum; acting twice would double it.
    params = {**params, 'up': jax.tree.map(jnp.zeros_like, params['up'])}
    return params, {**memory, 'past': past, 'minor': minor}

  def adapted(params, memory, env):
    del env
    classifier = as_linear(head, params['head'])
    if classifier is not None:
      classifier = jax.tree.map(lambda leaf: leaf / temperature, classifier)
    return Adapted(whole, memory['past'], classifier)

  return from_forward(
    'splitlora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    consolidate=consolidate,
    end_task=end_task,
    adapted=adapted,
    head=head,
    renewed=('up',),
  )


def minor_space(moments: Array, tasks: Array, balance: float) -> Array:
  """The projector on the eigenvectors of the smallest eigenvalues: [d, d].

  Args:
    moments: H [d, d], of the inputs of all tasks so far.
    tasks: how many.
    balance: alpha.
  """
  size = len(moments)
  values, vectors = jnp.linalg.eigh((moments + moments.T) / 2)  # The smallest first.
  values = jnp.maximum(values, 0)
  # The share that the k first hold, for k from 0 to d - 1: one direction is never minor.
  share = (jnp.cumsum(values) - values) / jnp.maximum(values.sum(), 1e-30)
  count = jnp.arange(size)
  minor = vectors * (count < jnp.argmin(tasks * share - balance * count / size))
  return jnp.matmul(minor, minor.T, precision='highest')


def drawn_within(key: Key, projector: Array, fresh: Array, divisor: Array) -> Array:
  """A Gaussian matrix within a space, with the norm of a fresh A over a divisor: [d_in, r].

  Args:
    key: consumed.
    projector: [d_in, d_in] on the space. With it, no sign or order of a basis matters.
    fresh: [d_in, r]
    divisor: []
  """
  drawn = jnp.matmul(projector, jax.random.normal(key, fresh.shape), precision='highest')
  norm = jnp.linalg.norm
  return drawn * norm(fresh) / (divisor * jnp.maximum(norm(drawn), 1e-12))
