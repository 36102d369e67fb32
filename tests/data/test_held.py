import numpy as np
import pytest

from pecft_jax import data

LABELS = np.array([0] * 10 + [1] * 7 + [2] * 2)
SOURCE = data.arrays('mine', np.arange(19, dtype=np.uint8).reshape(19, 1, 1, 1), LABELS)


def _rows(source):
  return source.inputs[np.arange(len(source.labels))].ravel()


@pytest.mark.parametrize(
  ('share', 'counts'), [(0.2, [2, 1, 1]), (0.5, [5, 4, 1]), (0.99, [9, 6, 1])]
)
def test_each_class_gives_its_share_and_keeps_some(share, counts):
  train, test = data.held_out(SOURCE, share)
  assert np.bincount(test.labels).tolist() == counts
  assert (np.bincount(train.labels) + counts).tolist() == [10, 7, 2]
  # Every row is in one of the two, in the order of the source, with its label.
  assert sorted([*_rows(train), *_rows(test)]) == list(range(19))
  for part in (train, test):
    assert np.all(np.diff(_rows(part).astype(int)) > 0)
    np.testing.assert_array_equal(part.labels, LABELS[_rows(part)])


def test_the_seed_alone_decides():
  same, again, other = (_rows(data.held_out(SOURCE, 0.5, seed=s)[1]) for s in (3, 3, 4))
  np.testing.assert_array_equal(same, again)
  assert same.tolist() != other.tolist()


def test_every_domain_has_its_share():
  source = data.arrays('mine', SOURCE.inputs, np.minimum(LABELS, 1), domains=np.arange(19) % 2)
  train, test = data.held_out(source, 0.2)
  for part in (train, test):
    assert len(set(zip(part.labels.tolist(), part.domains.tolist(), strict=True))) == 4


@pytest.mark.parametrize('share', [0, 1, -0.5, 1.5])
def test_a_share_outside_of_0_to_1_is_refused(share):
  with pytest.raises(ValueError, match='expected a share between 0 and 1'):
    data.held_out(SOURCE, share)


def test_classes_with_one_row_are_named():
  source = data.arrays('mine', SOURCE.inputs[:3], [0, 0, 1], ['cat', 'dog'])
  with pytest.raises(ValueError, match=r"'mine': expected at least 2 rows .* got 1 of \['dog'\]"):
    data.held_out(source)
  source = source._replace(domains=np.array([0, 1, 1]), domain_names=('day', 'night'))
  with pytest.raises(ValueError, match=r"'cat of domain day'"):
    data.held_out(source)
