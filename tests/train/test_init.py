"""The facade."""

from pecft_jax import train


def test_all_names_are_there_and_in_order():
  assert list(train.__all__) == sorted(train.__all__)
  assert all(hasattr(train, name) for name in train.__all__)
