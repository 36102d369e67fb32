import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pecft_jax.data import class_order


def test_natural_order_counts_up():
  assert class_order('natural', 4) == (0, 1, 2, 3)


def test_seed_1993_is_the_published_order_of_cifar100():
  # The first tasks of the lists printed by PILOT and PyCIL.
  order = class_order('seed:1993', 100)
  assert order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)


def test_seeds_agree_with_numpys_global_generator():
  state = np.random.get_state()
  np.random.seed(7)
  expected = np.random.permutation(20)
  np.random.set_state(state)
  assert class_order('seed:7', 20) == tuple(expected)


@given(st.permutations(range(6)), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_labels_can_be_given_as_text_array_or_sequence(labels, count):
  labels = tuple(labels[:count])
  assert class_order(labels, 6) == labels
  assert class_order(np.array(labels), 6) == labels
  assert class_order(', '.join(map(str, labels)), 6) == labels


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ((0, 1, 1), r'each label once, got \[1\]'),
    ('2,0,2', r'each label once, got \[2\]'),
    ((0, 3), r'labels in 0..2, got \[3\]'),
    ('-1,0', r'labels in 0..2, got \[-1\]'),
    ((), 'at least one label'),
    ('', 'cannot read a class order'),
    ('random', "cannot read a class order from 'random'.*choices: 'natural'"),
    ('seed:x', 'cannot read'),
    ('seed:-1', 'cannot read'),
    ((0.5, 1), 'cannot read'),
    (3, 'cannot read'),
  ],
)
def test_wrong_orders_are_refused(spec, message):
  with pytest.raises(ValueError, match=message):
    class_order(spec, 3)
