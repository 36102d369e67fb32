"""CODA-Prompt: decomposed attention-based prompting (Smith et al., 2023, arXiv:2211.13218).

A prefix is a weighted sum of components. The weights are differentiable functions of the frozen
feature; each task adds components, and those of past tasks stay as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pecft_jax.about import Paper, about
from pecft_jax.arguments import at_least
from pecft_jax.continual.core import (
  abstract_delta,
  from_forward,
  frozen_features,
  model,
  new_head,
  unit,
)
from pecft_jax.continual.prompts.prefixes import layers_of, prefixes_at, room_for, with_slot
from pecft_jax.heads import linear
from pecft_jax.peft.tokens.prefix import PrefixDelta
from pecft_jax.problems import need_row_of_answers
from pecft_jax.settings import recorded
from pecft_jax.typing import Array, Backbone, Capacity, ContinualMethod, Head, Key, Output


class Components(NamedTuple):
  """M prefixes of one block, with what gives their weights."""

  AXES = {
    'k': ('pool', 'token', 'head', 'component'),
    'v': ('pool', 'token', 'head', 'component'),
    'keys': ('pool', 'width'),
    'attention': ('pool', 'width'),
  }

  k: Array  # [M, P, H, K]
  v: Array  # [M, P, H, K]
  keys: Array  # [M, D]
  attention: Array  # [M, D]


@about(
  'method',
  'prompts',
  Paper(
    'CODA-Prompt: continual decomposed attention-based prompting for rehearsal-free continual '
    'learning',
    '2211.13218',
  ),
  needs=('attention',),
  carries='prompt components, their keys and their attention vectors, some per task',
  passes='2',
  tiny={
    '': lambda backbone, capacity: coda_prompt(
      backbone, capacity, pool=2 * capacity.tasks + 1, length=3
    ),
    'penalty': lambda backbone, capacity: coda_prompt(
      backbone, capacity, pool=capacity.tasks, length=1, orthogonality=0.1
    ),
  },
)
@recorded(defaults={'head': linear})
def coda_prompt(
  backbone: Backbone,
  capacity: Capacity,
  *,
  head: Head | None = None,
  pool: int = 100,
  length: int = 4,
  layers: Sequence[int] | None = None,
  orthogonality: float = 0.0,
) -> ContinualMethod:
  """Trains prompt components whose weights are cosines to an attended frozen feature.

  In each block, the weight of component m is cos(q * A_m, K_m), with q the frozen feature, A_m its
  attention vector and K_m its key; there is no softmax and no selection. A task owns pool / T
  components (rounded down). Those of past tasks take part and are not trained, those of later
  tasks take no part. New ones start orthogonal to all before them, by Gram-Schmidt on random
  vectors. The training softmax is over the task's own classes.

  Args:
    backbone: frozen, with blocks of attention.
    capacity: tasks and classes of the sequence.
    head: what classifies features; `linear()` by default.
    pool: M, components in each block after the last task. More than D of them cannot have
      orthogonal keys.
    length: P, keys, and as many values, of a prefix. The authors' code counts both together: its
      length 8 is 4 here.
    layers: blocks with a prefix, counted from 0; the first five by default.
    orthogonality: weight of the mean over entries of (B B^T - I)^2, summed over blocks and over
      prefixes, keys and attention vectors as B; 0.1 in the paper, 0 in the authors' later code,
      which starts components orthogonal.

  Raises:
    ValueError: for a backbone without attention or without the named blocks, fewer components than
      tasks, a length below 1, a negative weight, or a problem as in `finetune`.

  >>> from pecft_jax.continual import coda_prompt
  >>> from pecft_jax.backbones import pretrained
  >>> from pecft_jax.typing import Capacity
  >>> model = pretrained('vit_glyphs16')
  >>> method = coda_prompt(model.backbone, Capacity(tasks=5, classes=10))
  >>> method.name
  'coda_prompt'
  """
  head = linear() if head is None else head
  need_row_of_answers(capacity.problem, capacity.classes, 'coda_prompt')
  tasks, width = capacity.tasks, backbone.width
  if pool < tasks:
    raise ValueError(f'coda_prompt needs a component per task, got pool={pool} for {tasks} tasks')
  at_least(1, length=length)
  at_least(0, orthogonality=orthogonality)
  transform = prefixes_at(layers_of(backbone, layers, range(5)), length)
  shapes, each = abstract_delta(backbone, transform), pool // tasks
  net = model(backbone, transform)

  def fresh(bank, key):
    """New components of every block, orthogonal to those of past tasks."""
    found = {}
    for path, k_block in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
      k_prefix, k_keys, k_attention = jax.random.split(k_block, 3)
      old, one = _together(bank[path]), shapes[path].k.shape
      flat = orthogonal_to(_flat(old), each, k_prefix)
      k, v = jnp.split(flat, 2, axis=1)
      found[path] = Components(
        k.reshape(each, *one),
        v.reshape(each, *one),
        orthogonal_to(old.keys, each, k_keys),
        orthogonal_to(old.attention, each, k_attention),
      )
    return found

  def empty():
    one = lambda leaf: jnp.zeros((each, *leaf.shape))
    vectors = jnp.zeros((each, width))
    blocks = {p: Components(one(s.k), one(s.v), vectors, vectors) for p, s in shapes.items()}
    return room_for(tasks, blocks)

  def init(key, frozen):
    del frozen
    bank = empty()
    state = new_head(head, key, backbone, capacity)
    return {'components': fresh(bank, key), 'head': state}, {'bank': bank}

  def begin_task(params, memory, env, key):
    del env
    return {**params, 'components': fresh(memory['bank'], key)}, memory

  def components(params, memory, env):
    """Those of all tasks so far and zeros, by block: [M, ...]."""
    bank = with_slot(memory['bank'], env.task.index, params['components'])
    return {path: _together(of_tasks) for path, of_tasks in bank.items()}

  def forward(params, memory, env, x, key):
    query = frozen_features(backbone, env.frozen, x)
    blocks = components(params, memory, env)
    delta = {path: weighted(own, weights(query, own)) for path, own in blocks.items()}
    features = net.features(env.frozen, delta, x, key)
    logits = head.logits(params['head'], features)
    penalty = jnp.zeros(())
    if orthogonality:
      active = jnp.arange(tasks * each) < (env.task.index + 1) * each
      penalty = sum((_penalty(own, active) for own in blocks.values()), penalty)
    return Output(logits, jnp.full(logits.shape[0], orthogonality * penalty), features)

  def end_task(params, memory, env):
    return params, {'bank': with_slot(memory['bank'], env.task.index, params['components'])}

  return from_forward(
    'coda_prompt',
    backbone,
    capacity,
    init,
    forward,
    masked=True,
    begin_task=begin_task,
    end_task=end_task,
    query=lambda frozen, x: frozen_features(backbone, frozen, x),
    head=head,
    passes=lambda tasks: 2.0,
    renewed=('components',),
  )


def weights(query: Array, components: Components) -> Array:
  """cos(q * A_m, K_m): [B, D] -> [B, M]; 0 where a component is zero."""
  attended = components.attention * unit(components.keys)
  # The squared length of q * A_m, without an array [B, M, D].
  squares = jnp.square(query) @ jnp.square(components.attention).T
  return (query @ attended.T) * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def weighted(components: Components, weights: Array) -> PrefixDelta:
  """The weighted sum of prefixes: [M, P, H, K], [B, M] -> [B, P, H, K]."""
  mixed = lambda leaf: jnp.einsum('bm,mphk->bphk', weights, leaf)
  return PrefixDelta(mixed(components.k), mixed(components.v))


def orthogonal_to(old: Array, count: int, key: Key) -> Array:
  """Unit vectors, orthogonal to each other and to old ones, from random ones by Gram-Schmidt.

  As in the authors' code, each random vector loses its projections on the vectors before it, one by
  one: exact where these are orthogonal, close where training moved old ones a little.

  Args:
    old: [M, D]; rows of zeros are left out.
    count: N of the new vectors.
    key: consumed.

  Returns:
    [N, D]
  """
  random = jax.random.normal(key, (count, old.shape[1]))

  def step(made, this):
    index, vector = this
    before = jnp.concatenate([old, made])
    product = lambda a, b: jnp.matmul(a, b, precision='highest')
    squares = jnp.square(before).sum(-1)
    shares = jnp.where(squares > 1e-8, product(before, vector), 0) / jnp.maximum(squares, 1e-8)
    return made.at[index].set(vector - product(shares, before)), None

  made, _ = jax.lax.scan(step, jnp.zeros_like(random), (jnp.arange(count), random))
  return unit(made)


def _together(of_tasks: Components) -> Components:
  """[T, M / T, ...] -> [M, ...]"""
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), of_tasks)


def _flat(components: Components) -> Array:
  """Prefixes as vectors, keys before values: [M, 2 P H K]."""
  parts = (components.k, components.v)
  return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in parts], 1)


def _penalty(components: Components, active: Array) -> Array:
  """How far the active components are from orthogonal unit vectors."""
  both = active[:, None] & active
  total = jnp.zeros(())
  for rows in (_flat(components), components.keys, components.attention):
    error = jnp.square(rows @ rows.T - jnp.eye(len(rows)))
    total += jnp.where(both, error, 0).sum() / both.sum()
  return total
