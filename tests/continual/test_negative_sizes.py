"""No factory takes a negative number where it counts something."""

import inspect
import typing

import pytest
from tiny_runs import tiny_method, tiny_world

from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.peft import PEFTS


def _counts(factory):
  """Arguments that are integers, but for seeds."""
  hints = typing.get_type_hints(factory)
  whole = lambda hint: hint is int or int in typing.get_args(hint)
  return [name for name in inspect.signature(factory).parameters if whole(hints.get(name))]


CASES = [
  (factory, name)
  for registry in (METHODS, WRAPPERS, PEFTS)
  for factory in registry.values()
  for name in _counts(factory)
  if name != 'seed'
]


def _parts(factory):
  """What a factory is given first."""
  name = factory.about.name
  world = tiny_world('texts' if name in METHODS and 'texts' in factory.about.needs else 'adapters')
  first = {
    'method': (world.model.backbone, world.capacity),
    'wrapper': (tiny_method('finetune'),),
    'transform': (),
  }
  return first[factory.about.kind]


@pytest.mark.parametrize(
  ('factory', 'name'), CASES, ids=lambda each: getattr(each, '__name__', each)
)
def test_a_negative_count_is_refused_at_construction(factory, name):
  others = {
    key: 1
    for key, each in inspect.signature(factory).parameters.items()
    if each.default is each.empty and key not in ('backbone', 'capacity', 'inner', name)
  }
  with pytest.raises(ValueError):
    factory(*_parts(factory), **{**others, name: -5})
