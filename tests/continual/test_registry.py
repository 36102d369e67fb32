from pecft_jax import continual
from pecft_jax.continual import METHODS, WRAPPERS, summaries


def test_every_factory_is_public_under_its_name():
  for name, factory in {**METHODS, **WRAPPERS}.items():
    assert factory.__name__ == name
    assert getattr(continual, name) is factory


def test_every_entry_has_a_line_about_it():
  lines = summaries()
  assert set(lines) == {*METHODS, *WRAPPERS}
  assert all(line.endswith('.') and len(line) < 100 for line in lines.values()), lines


def test_names_are_sorted():
  assert continual.__all__ == sorted(continual.__all__)
  assert list(METHODS) == sorted(METHODS) and list(WRAPPERS) == sorted(WRAPPERS)
