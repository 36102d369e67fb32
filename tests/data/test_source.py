import numpy as np
import pytest

from pecft_jax.data import arrays, check_inputs, first_per_class, in_memory, only_classes


def toy():
  """Eight images, each filled with its row number."""
  images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
  return arrays('toy', images, [2, 0, 1, 0, 0, 2, 1, 0], list('abc'), domains=[0, 1] * 4)


def rows_of(source):
  return source.inputs[np.arange(len(source.inputs))][:, 0, 0, 0].tolist()


def test_first_per_class_keeps_the_order_of_the_file():
  source = first_per_class(toy(), 2)
  assert rows_of(source) == [0, 1, 2, 3, 5, 6]
  np.testing.assert_array_equal(source.labels, [2, 0, 1, 0, 2, 1])
  np.testing.assert_array_equal(source.domains, [0, 1, 0, 1, 1, 0])


def test_first_per_class_counts_in_each_domain_where_asked():
  assert rows_of(first_per_class(toy(), 1, by_domain=True)) == [0, 1, 2, 4, 5]


def test_first_per_class_keeps_small_classes_whole():
  assert rows_of(first_per_class(toy(), 3)) == [0, 1, 2, 3, 4, 5, 6]


def test_only_classes_numbers_classes_anew():
  source = only_classes(toy(), [2, 0])
  assert source.class_names == ('c', 'a')
  assert rows_of(source) == [0, 1, 3, 4, 5, 7]
  np.testing.assert_array_equal(source.labels, [0, 1, 1, 1, 0, 1])


@pytest.mark.parametrize('classes', [[0, 0], [3], [-1], []])
def test_only_classes_refuses_unknown_and_repeated_classes(classes):
  with pytest.raises(ValueError, match=r'expected distinct classes in 0..2'):
    only_classes(toy(), classes)


def test_selections_nest():
  source = first_per_class(only_classes(toy(), [0, 1]), 1)
  assert rows_of(source) == [1, 2]


def test_in_memory_reads_the_same_images():
  source = first_per_class(toy(), 1)
  loaded = in_memory(source)
  assert isinstance(loaded.inputs, np.ndarray)
  assert rows_of(loaded) == rows_of(source)


def test_check_inputs_accepts_the_right_shape():
  check_inputs(toy(), (2, 2, 1))


def test_check_inputs_suggests_the_resize_that_helps():
  with pytest.raises(ValueError, match=r'shape \(4, 4, 1\), got \(2, 2, 1\).*resize\(source, 4\)'):
    check_inputs(toy(), (4, 4, 1))
  with pytest.raises(ValueError, match=r'resize\(source, 4, channels=3\)'):
    check_inputs(toy(), [4, 4, 3])
