"""Rules that merge the task vectors of a sequence: tau_t, what task t changed from the start.

A rule is a record of pure functions on trees of arrays of any structure. What it carries has a
constant shape: a tree as large as one task vector where a running form exists, else one per task.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from pecft_jax.arguments import above, at_least
from pecft_jax.settings import record_line, recorded
from pecft_jax.typing import Array, Key

Tree = Any


class Rule(NamedTuple):
  """How task vectors become one.

  Attributes:
    init: `(like, tasks, key) -> state`, before the first task; `like` has the shapes of a task
      vector. Consumes the key.
    add: `(state, tau, fisher, index []) -> state`, at the end of task `index`. `fisher` is a tree
      like tau, or None where the rule does not ask for it.
    read: `(state) -> tau`, the merge of all tasks so far, before it is scaled.
    scale: of the merge, as published.
    fisher: whether it asks for the diagonal Fisher information of each task.
    settings: the factory's name and arguments.
  """

  init: Callable[[Tree, int, Key], Any]
  add: Callable[[Any, Tree, Tree, Array], Any]
  read: Callable[[Any], Tree]
  scale: float = 1.0
  fisher: bool = False
  settings: Mapping[str, Any] | None = None

  def __repr__(self) -> str:
    """The settings in a line."""
    return record_line(self)


@recorded
def average() -> Rule:
  """The mean of all task vectors.

  >>> rule = average()
  >>> state = rule.init(jnp.zeros(2), 3, jax.random.key(0))
  >>> state = rule.add(state, jnp.array([1.0, 0.0]), None, jnp.array(0))
  >>> rule.read(rule.add(state, jnp.array([3.0, 2.0]), None, jnp.array(1))).tolist()
  [2.0, 1.0]
  """

  def add(state, tau, fisher, index):
    del fisher
    return jax.tree.map(lambda mean, new: mean + (new - mean) / (index + 1), state, tau)

  return Rule(_zeros, add, lambda state: state)


@recorded
def moving_average(decay: float = 0.5) -> Rule:
  """The exponential moving average, m <- decay m + (1 - decay) tau, from the first task vector on.

  Args:
    decay: of what is there, in [0, 1).

  Raises:
    ValueError: for a decay outside [0, 1).

  >>> moving_average(0.9).scale
  1.0
  """
  if not 0 <= decay < 1:
    raise ValueError(f'moving_average: expected a decay in [0, 1), got {decay}')

  def add(state, tau, fisher, index):
    del fisher
    share = jnp.where(index == 0, 0.0, decay)
    return jax.tree.map(lambda mean, new: share * mean + (1 - share) * new, state, tau)

  return Rule(_zeros, add, lambda state: state)


@recorded
def task_arithmetic() -> Rule:
  """The sum of all task vectors, scaled by 0.3 (Ilharco et al., 2023, arXiv:2212.04089).

  >>> task_arithmetic().scale
  0.3
  """

  def add(state, tau, fisher, index):
    del fisher, index
    return jax.tree.map(jnp.add, state, tau)

  return Rule(_zeros, add, lambda state: state, scale=0.3)


@recorded
def ties(density: float = 0.2) -> Rule:
  """Trims, elects signs, and averages what agrees (Yadav et al., 2023, arXiv:2306.01708).

  Of each task vector the `density` N entries of largest magnitude are kept, over all N entries of
  the tree. The sign of an entry is that of the sum over tasks; where that is zero, it is the
  sign of the sum of these signs, as in the authors' code. The merge is the mean of the entries
  with that sign, over the tasks that have one.

  Carries the trimmed vectors of all tasks.

  Args:
    density: share of the entries that is kept, in (0, 1].

  Raises:
    ValueError: for a density outside (0, 1].

  >>> rule = ties(1.0)
  >>> state = rule.init(jnp.zeros(2), 2, jax.random.key(0))
  >>> state = rule.add(state, jnp.array([3.0, 1.0]), None, jnp.array(0))
  >>> rule.read(rule.add(state, jnp.array([-1.0, 3.0]), None, jnp.array(1))).tolist()
  [3.0, 2.0]
  """
  if not 0 < density <= 1:
    raise ValueError(f'ties: expected a density in (0, 1], got {density}')

  def add(state, tau, fisher, index):
    del fisher
    flat, unravel = ravel_pytree(tau)
    size = jnp.abs(flat)
    kept = max(int(density * len(flat)), 1)
    least = jnp.sort(size)[len(flat) - kept]
    trimmed = unravel(jnp.where(size >= least, flat, 0))
    return jax.tree.map(lambda slots, new: slots.at[index].set(new), state, trimmed)

  def read(state):
    signs = jax.tree.map(lambda slots: jnp.sign(slots.sum(0)), state)
    majority = jnp.sign(sum((s.sum() for s in jax.tree.leaves(signs)), jnp.zeros(())))

    def merged(slots, sign):
      sign = jnp.where(sign == 0, majority, sign)
      agree = jnp.where(sign > 0, slots > 0, slots < 0)
      return jnp.where(agree, slots, 0).sum(0) / jnp.maximum(agree.sum(0), 1)

    return jax.tree.map(merged, state, signs)

  return Rule(_slots, add, read)


@recorded
def magmax() -> Rule:
  """Of each entry the largest in magnitude over tasks, scaled by 0.5.

  Marczak et al., 2024, arXiv:2407.06322. Of equal ones the later. The paper trains each task from
  the last one's end.

  >>> rule = magmax()
  >>> state = rule.init(jnp.zeros(2), 2, jax.random.key(0))
  >>> state = rule.add(state, jnp.array([3.0, 1.0]), None, jnp.array(0))
  >>> rule.read(rule.add(state, jnp.array([1.0, -2.0]), None, jnp.array(1))).tolist()
  [3.0, -2.0]
  """

  def add(state, tau, fisher, index):
    del fisher, index
    larger = lambda best, new: jnp.where(jnp.abs(new) >= jnp.abs(best), new, best)
    return jax.tree.map(larger, state, tau)

  return Rule(_zeros, add, lambda state: state, scale=0.5)


@recorded(defaults={'rule': task_arithmetic})
def dare(rate: float = 0.9, rule: Rule | None = None) -> Rule:
  """Drops entries of each task vector at random, scales the others up, and merges by a rule.

  Yu et al., 2023, arXiv:2311.03099: an entry is dropped with probability `rate`, once at the end of
  its task; what is left is divided by 1 - rate.

  Args:
    rate: in [0, 1).
    rule: that merges what is left; `task_arithmetic()` by default.

  Raises:
    ValueError: for a rate outside [0, 1).

  >>> dare(0.5, ties()).scale
  1.0
  """
  if not 0 <= rate < 1:
    raise ValueError(f'dare: expected a rate in [0, 1), got {rate}')
  inner = task_arithmetic() if rule is None else rule

  def init(like, tasks, key):
    k_drop, k_inner = jax.random.split(key)
    return {'key': jax.random.key_data(k_drop), 'inner': inner.init(like, tasks, k_inner)}

  def add(state, tau, fisher, index):
    key = jax.random.fold_in(jax.random.wrap_key_data(state['key']), index)
    leaves, structure = jax.tree.flatten(tau)

    def left(number, leaf):
      kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, leaf.shape)
      return jnp.where(kept, leaf / (1 - rate), 0)

    some = jax.tree.unflatten(structure, [left(n, leaf) for n, leaf in enumerate(leaves)])
    return {**state, 'inner': inner.add(state['inner'], some, fisher, index)}

  return Rule(
    init, add, lambda state: inner.read(state['inner']), scale=inner.scale, fisher=inner.fisher
  )


@recorded
def fisher_weighted(share: float = 0.4, most: float | None = 1e-4) -> Rule:
  """The mean of the last merge and the new vector, weighted by the Fisher information of each.

  CoFiMA (Marouf et al., 2023, arXiv:2312.08977), per entry

    m <- ((1 - share) F_{t-1} m + share F_t tau_t) / ((1 - share) F_{t-1} + share F_t),

  with F_t the diagonal empirical Fisher information at the end of task t. Where both are zero,
  the weights are 1 - share and share. The paper trains each task from the last merge.

  Args:
    share: lambda, of the new vector, in (0, 1].
    most: larger Fisher information is cut to this, as in the authors' code; None for no limit.

  Raises:
    ValueError: for a share outside (0, 1], or a limit that is not positive.

  >>> rule = fisher_weighted(0.5, None)
  >>> state = rule.init(jnp.zeros(1), 2, jax.random.key(0))
  >>> state = rule.add(state, jnp.array([1.0]), jnp.array([3.0]), jnp.array(0))
  >>> rule.read(rule.add(state, jnp.array([5.0]), jnp.array([1.0]), jnp.array(1))).tolist()
  [2.0]
  """
  above(0, most=most)
  at_least(0, share=share)
  if not 0 < share <= 1:
    raise ValueError(f'fisher_weighted: expected a share in (0, 1], got {share}')

  def init(like, tasks, key):
    zeros = _zeros(like, tasks, key)
    return {'mean': zeros, 'fisher': jax.tree.map(jnp.copy, zeros)}

  def add(state, tau, fisher, index):
    if most is not None:
      limit = most
      fisher = jax.tree.map(lambda f: jnp.minimum(f, limit), fisher)

    def merged(mean, old, new, now):
      left, right = (1 - share) * old, share * now
      known = left + right > 0
      weight = jnp.where(known, right / jnp.where(known, left + right, 1), share)
      weight = jnp.where(index == 0, 1.0, weight)
      return mean + weight * (new - mean)

    mean = jax.tree.map(merged, state['mean'], state['fisher'], tau, fisher)
    return {'mean': mean, 'fisher': fisher}

  return Rule(init, add, lambda state: state['mean'], fisher=True)


def _zeros(like: Tree, tasks: int, key: Key) -> Tree:
  del tasks, key
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)


def _slots(like: Tree, tasks: int, key: Key) -> Tree:
  del key
  return jax.tree.map(lambda leaf: jnp.zeros((tasks, *leaf.shape), leaf.dtype), like)


# By name, for command lines.
RULES: Mapping[str, Callable[[], Rule]] = {
  'average': average,
  'moving-average': moving_average,
  'task-arithmetic': task_arithmetic,
  'ties': ties,
  'dare': dare,
  'magmax': magmax,
  'fisher': fisher_weighted,
}
