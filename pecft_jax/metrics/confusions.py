"""Which classes are taken for which: the confusion matrix, and the accuracy of each class."""

from collections.abc import Sequence

import numpy as np

Classes = np.ndarray | Sequence[int]  # [N]
Counts = np.ndarray  # int64 [C, C]; rows are the true classes, columns the answers.


def confusion_matrix(labels: Classes, answers: Classes, classes: int) -> Counts:
  """How many examples of each class got each answer.

  Args:
    labels: integers [N], the true classes.
    answers: integers [N], the predicted ones.
    classes: C.

  Returns:
    int64 [C, C]: the number of examples of class i that were answered j.

  Raises:
    ValueError: for other shapes, or classes outside of 0..C - 1.

  >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
  [[1, 1], [0, 1]]
  """
  labels, answers = np.asarray(labels), np.asarray(answers)
  if labels.ndim != 1 or labels.shape != answers.shape:
    raise ValueError(
      f'expected labels and answers of one shape [N], got {labels.shape} and {answers.shape}'
    )
  for what, values in (('labels', labels), ('answers', answers)):
    if values.size and not np.issubdtype(values.dtype, np.integer):
      raise ValueError(f'expected integer {what}, got {values.dtype}')
    if values.size and not 0 <= values.min() <= values.max() < classes:
      raise ValueError(f'expected {what} in 0..{classes - 1}, got {values.min()}..{values.max()}')
  cells = labels.astype(np.int64) * classes + answers.astype(np.int64)
  return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(confusion: Counts) -> np.ndarray:
  """The share of the examples of each class that were answered right.

  Args:
    confusion: [C, C], as `confusion_matrix` gives it.

  Returns:
    float64 [C]; NaN for a class without examples.

  Raises:
    ValueError: for another shape.

  >>> per_class_accuracy(confusion_matrix([0, 0, 1], [0, 1, 1], 2)).tolist()
  [0.5, 1.0]
  """
  confusion = np.asarray(confusion)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(f'expected a confusion matrix [C, C], got {confusion.shape}')
  examples = confusion.sum(1)
  right = confusion.diagonal().astype(np.float64)
  return np.divide(right, examples, out=np.full(len(right), np.nan), where=examples > 0)
