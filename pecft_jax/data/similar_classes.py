"""Class orders by how similar the classes of neighbouring tasks are."""

from typing import NamedTuple

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.counter import bits

_STARTS = 8  # Local searches from random orders, of which the best counts.
_DRAWN = 201  # Random orders whose median is taken.
_LEAST = 1e-9  # Smaller changes of the mean are rounding.


class SimilarityOrders(NamedTuple):
  """Three class orders: position in the sequence -> label.

  Attributes:
    hardest: least similarity between neighbouring tasks: similar classes come together.
    median: of many random orders the one in the middle.
    easiest: most similarity between neighbouring tasks: every task is a mixture of all.
    similarity: mean over pairs of classes of neighbouring tasks, of each of the three.
  """

  hardest: tuple[int, ...]
  median: tuple[int, ...]
  easiest: tuple[int, ...]
  similarity: tuple[float, float, float]


@checked
def similarity_orders(embeddings: np.ndarray, tasks: int, *, seed: int = 0) -> SimilarityOrders:
  """Finds class orders that are hard, of middle difficulty and easy for most methods.

  A few random orders say little about the worst one. Accuracy grows with the similarity of
  neighbouring tasks (Lai et al., 2025, arXiv:2509.22580), which is what is searched for here: the
  mean of the cosines of all pairs of classes of tasks t and t + 1. Extremes are found by swapping
  pairs of classes until no swap helps, from several random orders; the paper groups by complete
  linkage of texts, which is a start and no optimum.

  Args:
    embeddings: [C, D], one of each class: mean features of a frozen model over training examples,
      or of the classes' names. Do not use the test set.
    tasks: of equally many classes, at least two.
    seed: of the random orders.

  Raises:
    ValueError: for another number of axes, embeddings that are not finite or zero, fewer than two
      tasks, or a number of tasks that does not divide C.

  >>> two_kinds = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
  >>> orders = similarity_orders(two_kinds, 2)
  >>> sorted(orders.hardest[:2]), sorted(orders.easiest[:2])[0] in (0, 2)
  ([0, 2], True)
  """
  similar = _cosines(embeddings)
  classes = len(similar)
  if tasks < 2 or classes % tasks:
    raise ValueError(
      f'expected at least two tasks that divide the {classes} classes evenly, got {tasks}'
    )
  task_of = np.repeat(np.arange(tasks), classes // tasks)
  drawn = [np.argsort(bits(seed, i, np.arange(classes)), kind='stable') for i in range(_DRAWN)]
  assigned = [task_of[np.argsort(order)] for order in drawn]  # Task of each label.
  value = lambda assignment: neighbour_similarity(similar, assignment, tasks)
  found = {
    sign: max(
      (_climbed(sign * similar, start, tasks) for start in assigned[:_STARTS]),
      key=lambda each, sign=sign: sign * value(each),
    )
    for sign in (-1, 1)
  }
  middle = sorted(assigned, key=value)[_DRAWN // 2]
  chosen = (found[-1], middle, found[1])
  orders = (tuple(np.argsort(each, kind='stable').tolist()) for each in chosen)
  hardest, median, easiest = (value(each) for each in chosen)
  return SimilarityOrders(*orders, similarity=(hardest, median, easiest))


def neighbour_similarity(similar: np.ndarray, task_of: np.ndarray, tasks: int) -> float:
  """Mean similarity over pairs of classes of neighbouring tasks.

  Args:
    similar: [C, C], symmetric.
    task_of: int [C], the task of each class.
    tasks: their number.
  """
  members = np.eye(tasks)[task_of]  # [C, tasks]
  between = members.T @ similar @ members  # Sums over pairs of classes.
  sizes = members.sum(0)
  return float(np.diag(between, 1).sum() / (sizes[:-1] * sizes[1:]).sum())


def _climbed(similar: np.ndarray, task_of: np.ndarray, tasks: int) -> np.ndarray:
  """The assignment after the best swap of two classes, again and again, until none helps."""
  similar = similar - np.diag(np.diag(similar))
  near = np.eye(tasks, k=1) + np.eye(tasks, k=-1)
  task_of = task_of.copy()
  each = np.arange(len(task_of))
  while True:
    gain = similar @ near[task_of]  # [C, tasks]: what a class adds in a task.
    moved = gain[:, task_of]  # [C, C]: class a in the task of b.
    here = gain[each, task_of]
    # What a and b gain by changing places; their own pair is counted in both gains.
    change = moved - here[:, None] + moved.T - here[None, :]
    change += 2 * similar * near[task_of[:, None], task_of[None, :]]
    a, b = np.unravel_index(np.argmax(change), change.shape)
    if change[a, b] <= _LEAST:
      return task_of
    task_of[a], task_of[b] = task_of[b], task_of[a]


def _cosines(embeddings: np.ndarray) -> np.ndarray:
  """Cosines of all pairs: float64 [C, C]."""
  wide = np.asarray(embeddings, np.float64)
  if wide.ndim != 2:
    raise ValueError(f'expected embeddings [C, D], got the shape {list(wide.shape)}')
  lengths = np.linalg.norm(wide, axis=1, keepdims=True)
  if not np.isfinite(wide).all() or (lengths == 0).any():
    bad = np.flatnonzero(~np.isfinite(wide).all(1) | (lengths[:, 0] == 0)).tolist()
    raise ValueError(f'expected finite embeddings other than zero, got others for classes {bad}')
  unit = wide / lengths
  return unit @ unit.T
