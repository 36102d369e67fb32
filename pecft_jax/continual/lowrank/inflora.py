"""InfLoRA: interference-free low-rank adaptation (Liang and Li, 2024, arXiv:2404.00228).

Each task learns W + A_t B_t with A_t [d_in, r] designed and fixed, and B_t trained. A_t spans the
directions of the task's inputs that those of old tasks do not have, so that updates leave old
inputs as they are.
"""

import math

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.continual.core import as_linear, from_forward, model, new_head
from pecft_jax.continual.lowrank.sums import is_lora, joined, need_lora, stored, summed
from pecft_jax.heads import linear
from pecft_jax.peft.compose import chain, take
from pecft_jax.peft.lowrank.lora import LoraDelta, lora
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import (
  Adapted,
  Array,
  Backbone,
  Capacity,
  ContinualMethod,
  Head,
  Once,
  Output,
  PeftTransform,
  Watch,
)


def _default_peft() -> PeftTransform:
  return lora(r'attn/(k|v)$', rank=10, alpha=10)


@about(
  'method',
  'low-rank',
  Paper('InfLoRA: interference-free low-rank adaptation for continual learning', '2404.00228'),
  needs=('LoRA factors',),
  carries='the LoRA factors of each task, and a projector d_in x d_in per site',
  tiny=lambda backbone, capacity: inflora(
    backbone, capacity, peft=lora('.', rank=2, alpha=2), threshold=0.6
  ),
)
@recorded(defaults={'peft': _default_peft, 'head': linear})
def inflora(
  backbone: Backbone,
  capacity: Capacity,
  *,
  peft: PeftTransform | None = None,
  head: Head | None = None,
  threshold: float = 0.95,
) -> ContinualMethod:
  """Learns each task in a LoRA whose down-projection leaves out the directions of old tasks.

  Before training, a pass over the task's data gives the second moments H of the inputs of every
  site, and A_t is the leading left singular vectors of (I - P) H, divided by sqrt(3), with P the
  projector on the old directions. After training, a second pass with the new weights gives the
  directions that P gains: so many that P holds a share eps_t = eps + (1 - eps) t / T of the
  energy of H (the paper's DualGPM; with a projector instead of a basis, "remove"
  and "retain" are one). The training softmax is over the task's own classes.

  Args:
    backbone: frozen.
    capacity: tasks and classes of the sequence.
    peft: a `lora(...)`; on keys and values with rank 10 and scale 1 by default,
      as in the authors' code.
    head: what classifies features; `linear()` by default.
    threshold: eps, in (0, 1]; the authors use 0.95 and 0.98.

  Raises:
    ValueError: for a transform that is not LoRA, one that finds no site, a
      threshold outside (0, 1], or a problem as in `finetune`.

  >>> from pecft_jax.continual import inflora
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = inflora(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'inflora'
  """
  need_row_of_answers(capacity.problem, capacity.classes, 'inflora')
  if not 0 < threshold <= 1:
    raise ValueError(f'expected a threshold in (0, 1], got {threshold}')
  peft = _default_peft() if peft is None else peft
  head = linear() if head is None else head
  shapes = need_lora('InfLoRA', backbone, peft)
  net = model(backbone, chain(past=summed(peft), now=peft))

  def squares():
    return {path: jnp.zeros((each.a.shape[0],) * 2) for path, each in shapes.items()}

  def init(key, frozen):
    del frozen
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    bank = jax.tree.map(lambda leaf: jnp.zeros((capacity.tasks, *leaf.shape)), shapes)
    params = {
      'up': {path: each.b for path, each in zeros.items()},
      'head': new_head(head, key, backbone, capacity),
    }
    down = {path: each.a for path, each in zeros.items()}
    return params, {'bank': bank, 'down': down, 'moments': squares(), 'old': squares()}

  def begin_task(params, memory, env, key):
    del env, key
    return {**params, 'up': jax.tree.map(jnp.zeros_like, params['up'])}, memory

  def now(params, memory):
    down = jax.lax.stop_gradient(memory['down'])
    return {path: LoraDelta(down[path], params['up'][path]) for path in shapes}

  def run(params, memory, env, x, key, watch=None, rows: int | None = 1):
    delta = {'past': jax.lax.stop_gradient(memory['bank']), 'now': now(params, memory)}
    return net.run(env.frozen, delta, x, key, watch=watch, rows=rows)

  def forward(params, memory, env, x, key):
    features = run(params, memory, env, x, key).pooled
    logits = head.logits(params['head'], features)
    return Output(logits, jnp.zeros(logits.shape[0]), features)

  def gather(params, memory, env, batch):
    """Adds second moments of the inputs of every site, with the current weights."""
    watch = second_moments(shapes, batch.valid)
    taps = run(params, memory, env, batch.x, None, watch, rows=None).taps
    moments = {path: memory['moments'][path] + taps[f'linear:{path}'] for path in shapes}
    return {**memory, 'moments': moments}

  def design(params, memory, env, key):
    del env, key
    down = {
      path: new_directions(memory['moments'][path], memory['old'][path], each.a.shape[1])
      for path, each in shapes.items()
    }
    return params, {**memory, 'down': down, 'moments': squares()}

  def end_task(params, memory, env):
    share = threshold + (1 - threshold) * env.task.index / capacity.tasks
    first = env.task.index == 0
    old = {
      path: with_directions(memory['old'][path], memory['moments'][path], share, first)
      for path in shapes
    }
    bank = stored(memory['bank'], now(params, memory), env.task.index)
    # The task's delta now acts through its slot; acting twice would double it.
    params = {**params, 'up': jax.tree.map(jnp.zeros_like, params['up'])}
    return params, {**memory, 'bank': bank, 'old': old, 'moments': squares()}

  def adapted(params, memory, env):
    filled = take(memory['bank'], jnp.arange(int(env.task.index) + 1))
    delta = jax.tree.map(joined, filled, is_leaf=is_lora)
    return Adapted(peft, delta, as_linear(head, params['head']))

  return from_forward(
    'inflora',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    prepare=gather,
    consolidate=gather,
    end_task=end_task,
    phases=(Once('design', design, after='prepare'),),
    adapted=adapted,
    head=head,
    renewed=('up',),
  )


def second_moments(paths: object, valid: Array) -> Watch:
  """Watches inputs of linear sites: sums of x x^T [d_in, d_in] over tokens of valid examples.

  Args:
    paths: of the sites: anything with `in`.
    valid: [B] bool
  """

  def watch(site, args, out):
    del out
    if site.kind != 'linear' or site.path not in paths:
      return None
    x = args[0].astype(jnp.float32)
    x = x * valid.reshape(-1, *[1] * (x.ndim - 1))
    rows = x.reshape(-1, x.shape[-1])
    return jnp.matmul(rows.T, rows, precision='highest')

  return watch


def new_directions(moments: Array, old: Array, rank: int) -> Array:
  """The leading left singular vectors of (I - P) H over sqrt(3): [d_in, r].

  Args:
    moments: H [d_in, d_in], second moments of the new inputs.
    old: P [d_in, d_in], the projector on the old directions.
    rank: r, at most d_in.
  """
  free = moments - jnp.matmul(old, moments, precision='highest')
  vectors, _, _ = jnp.linalg.svd(free, full_matrices=False)
  return vectors[:, :rank] / math.sqrt(3)


def with_directions(old: Array, moments: Array, share: Array, first: Array) -> Array:
  """The projector on the old directions, and on new ones up to a share of the energy.

  Directions are counted as in the authors' code: of the first task while their
  sum stays below the share (at least one), later until it reaches the share.

  Args:
    old: P [d, d]
    moments: H [d, d], whose squared singular values are the energy.
    share: [] in (0, 1]
    first: [] bool, whether there are no old directions.

  Returns:
    [d, d]
  """
  total = jnp.square(moments).sum()
  free = moments - jnp.matmul(old, moments, precision='highest')
  vectors, values, _ = jnp.linalg.svd(free, full_matrices=False)
  energy = jnp.square(values)
  after = total - energy.sum() + jnp.cumsum(energy)
  before = after - energy
  fewer = (after < share * total).at[0].set(True)
  use = jnp.where(first, fewer, before < share * total) & (energy > 1e-12 * total)
  new = vectors * use
  return old + jnp.matmul(new, new.T, precision='highest')
