import numpy as np
import pytest
from sklearn import metrics as reference

from pecft_jax.metrics import confusion_matrix, per_class_accuracy


def test_they_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  labels, answers = rng.integers(0, 7, (2, 300))
  found = confusion_matrix(labels, answers, 7)
  np.testing.assert_array_equal(found, reference.confusion_matrix(labels, answers))
  recall = reference.recall_score(labels, answers, average=None)
  np.testing.assert_allclose(per_class_accuracy(found), recall)


def test_a_class_without_examples_has_no_accuracy():
  found = confusion_matrix([0, 2, 2], [0, 1, 2], 4)
  assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(per_class_accuracy(found), [1, np.nan, 0.5, np.nan])


@pytest.mark.parametrize(
  ('labels', 'answers', 'message'),
  [
    ([0, 1], [0], r'one shape \[N\]'),
    ([0, 2], [0, 1], r'labels in 0..1, got 0..2'),
    ([0, 1], [-1, 1], r'answers in 0..1, got -1..1'),
    ([0.0], [0], 'integer labels, got float64'),
  ],
)
def test_what_are_no_classes_is_refused(labels, answers, message):
  with pytest.raises(ValueError, match=message):
    confusion_matrix(labels, answers, 2)


def test_accuracies_of_what_is_no_matrix_are_refused():
  with pytest.raises(ValueError, match='expected a confusion matrix'):
    per_class_accuracy(np.zeros((2, 3)))
