"""Exemplars of a task, chosen by herding after its training, and their visits in later tasks.

What iCaRL (Rebuffi et al., 2017, arXiv:1611.07725) does with a buffer, for methods that do the
same. Of their memory, `buffer` holds the exemplars, and `sums`, `counts`, `candidates` and `rows`
what a task gathers until they are chosen.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.continual.core import raw
from pecft_jax.continual.memory import sample as sampling
from pecft_jax.continual.memory.herding import blocks, fetched, herded, moved
from pecft_jax.continual.memory.statistics import class_sums
from pecft_jax.typing import Array, Batch, Gather, Joined, Once


def nothing_gathered(size: int, candidates: int, classes: int, width: int) -> dict[str, Any]:
  """Empty statistics that a task fills until exemplars are chosen."""
  number = jax.ShapeDtypeStruct((), jnp.int32)
  item = jax.ShapeDtypeStruct((width,), jnp.float32), number, number
  return {
    'sums': jnp.zeros((classes, width)),
    'counts': jnp.zeros(classes),
    'candidates': sampling.empty(candidates, item),
    'rows': jnp.full(size, -1, jnp.int32),
  }


def gathered(memory: Any, features: Array, batch: Batch, classes: int) -> Any:
  """Memory after a batch of a task's data, of features [B, D] of length 1."""
  sums, counts = class_sums(features, batch.y, batch.valid, classes)
  items = features, batch.y, batch.index
  kept = sampling.offer(memory['candidates'], items, batch.valid, batch.index)
  return {
    **memory,
    'sums': memory['sums'] + sums,
    'counts': memory['counts'] + counts,
    'candidates': kept,
  }


def choice(size: int) -> tuple[Once, Gather]:
  """The phases that choose exemplars, and fetch them."""

  def herd(params, memory, env, key):
    """Makes blocks for the new classes, and chooses the rows of the data that fill them."""
    del key
    task = env.task
    old, new = blocks(size, task.past), blocks(size, task.seen)
    means = memory['sums'] / jnp.maximum(memory['counts'], 1)[:, None]
    chosen = herded(memory['candidates'], means, new, task.classes)
    rows = jnp.where(chosen >= 0, memory['candidates'].items[2][chosen], -1)
    buffer = moved(memory['buffer'], old, new, task.past & ~task.classes)
    return params, {**memory, 'buffer': buffer, 'rows': rows}

  def fetch(params, memory, env, batch):
    del params, env
    index = jnp.where(batch.valid, batch.index, -1)
    items = {'x': raw(batch.x)}
    return {**memory, 'buffer': fetched(memory['buffer'], memory['rows'], items, batch.y, index)}

  return Once('herd', herd, after='consolidate'), Gather('fetch', fetch, after='herd')


def joined(size: int, classes: int) -> Joined:
  """Every stored exemplar once; of a class with fewer than its share, some again."""

  def count(task):
    past = int(task.past.sum())
    return past * (size // past) if past else 0

  def read(memory, env, slot):
    buffer, own = memory['buffer'], blocks(size, env.task.past)
    many = (buffer.label[:, None] == jnp.arange(classes)).sum(0)  # [C]
    owner = own.owner[slot]
    at = own.start[owner] + own.place[slot] % jnp.maximum(many[owner], 1)
    return buffer.items['x'][at], buffer.label[at]

  return Joined(count, read)
