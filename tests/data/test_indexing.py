import pytest

from pecft_jax.data.indexing import indexed


def test_names_are_sorted_or_those_given():
  assert indexed('a', 'class', ['b', 'a', 'b'], None)[1] == ('a', 'b')
  labels, names = indexed('a', 'class', ['b', 'a', 'b'], ['c', 'b', 'a'])
  assert labels.tolist() == [1, 2, 1] and names == ('c', 'b', 'a')


def test_names_that_are_unknown_or_come_twice_are_refused():
  with pytest.raises(ValueError, match=r"'pets': unknown class 'dgo'; did you mean 'dog'"):
    indexed('pets', 'class', ['dgo'], ['dog', 'cat'])
  with pytest.raises(ValueError, match=r"'pets': expected each class name once"):
    indexed('pets', 'class', ['dog'], ['dog', 'dog'])
