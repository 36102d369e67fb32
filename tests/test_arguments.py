"""Odd arguments are refused where they are given, by name."""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from tinies import tiny
from tiny_runs import tiny_backbone

from pecft_jax import data
from pecft_jax.arguments import above, at_least, check_arguments, check_fields, expected
from pecft_jax.backbones import decoder, vit
from pecft_jax.continual import METHODS, WRAPPERS, finetune
from pecft_jax.peft import PEFTS, chain, lora
from pecft_jax.recipes import adam, grouped, sgd
from pecft_jax.train import RunOptions
from pecft_jax.typing import Capacity

CAPACITY = Capacity(2, 4)
VIT = {
  'image_size': 8, 'patch': 4, 'width': 8, 'depth': 1, 'heads': 2, 'mean': (0.5,) * 3,
  'std': (0.5,) * 3,
}  # fmt: skip
DECODER = {
  'vocabulary': 16, 'width': 8, 'depth': 1, 'heads': 2, 'kv_heads': 1, 'hidden': 16, 'length': 8,
}  # fmt: skip


@functools.cache
def inner():
  return tiny('finetune', tiny_backbone(), CAPACITY)


FACTORIES = {
  **{name: factory for name, factory in PEFTS.items()},
  **{name: functools.partial(f, tiny_backbone(), CAPACITY) for name, f in METHODS.items()},
  **{name: functools.partial(f, inner()) for name, f in WRAPPERS.items()},
}
WRONG = {int: (2.0, '2', True), float: ('x', True, math.nan, math.inf, 1e39), bool: (1, 'no')}


def scalars(factory):
  """The arguments of a factory that are numbers or booleans, with what is none."""
  function = factory.func if isinstance(factory, functools.partial) else factory
  hints = typing.get_type_hints(function)
  for name in inspect.signature(function).parameters:
    for kind in (hints.get(name), *typing.get_args(hints.get(name))):
      yield from ((name, value) for value in WRONG.get(kind, ()))


def test_numbers_and_booleans_of_a_factory_are_found():
  assert {name for name, _ in scalars(PEFTS['lora'])} == {
    'rank', 'alpha', 'rank_stabilised', 'dropout'
  }  # fmt: skip


@pytest.mark.parametrize('name', FACTORIES)
def test_every_factory_refuses_numbers_that_are_none(name):
  for argument, value in scalars(FACTORIES[name]):
    with pytest.raises(ValueError, match=rf'{argument}: expected .*, got '):
      FACTORIES[name](**{argument: value})


@pytest.mark.parametrize(
  ('name', 'arguments'),
  [
    ('lora', {'alpha': 0.0}),
    ('rslora', {'alpha': -1.0}),
    ('pissa', {'alpha': 0.0}),
    ('adalora', {'beta': 1.0}),
    ('adalora', {'orthogonality': -1.0}),
    ('adaptformer', {'scale': 0.0}),
    ('prefix', {'spread': -1.0}),
    ('ssf', {'spread': -1.0}),
    ('loha', {'alpha': 0.0}),
    ('lokr', {'factor': 0}),
    ('krona', {'scale': 0.0}),
    ('oft', {'block': 1}),
    ('boft', {'factors': 0}),
    ('hra', {'rank': 0}),
    ('c3a', {'spread': -1.0}),
    ('fourierft', {'count': 0}),
    ('vera', {'seed': -1}),
    ('vera', {'fan_in': 0}),
    ('l2p', {'length': 0}),
    ('l2p', {'pull': -1.0}),
    ('olora', {'decay': -1.0}),
    ('er', {'strength': -1.0}),
    ('derpp', {'beta': -1.0}),
    ('lwf', {'strength': -1.0}),
    ('aligned', {'decay': -1.0}),
    ('aligned', {'temperature': 0.0}),
  ],
)
def test_numbers_out_of_range_are_refused(name, arguments):
  (argument,) = arguments
  with pytest.raises(ValueError, match=argument):
    FACTORIES[name](**arguments)


@pytest.mark.parametrize(
  'call',
  [
    lambda: adam(math.nan),
    lambda: adam(1e39),
    lambda: adam(0.1, clip=0.0),
    lambda: adam(0.1, weight_decay=-1.0),
    lambda: adam(0.1, schedule=typing.cast(Any, 0.5)),
    lambda: sgd(0.1, momentum=1.0),
    lambda: grouped(typing.cast(Any, adam), {}),
    lambda: grouped(adam(0.1), {'head': math.nan}),
    lambda: chain(a=typing.cast(Any, lora)),
    lambda: finetune(tiny_backbone(), typing.cast(Any, 4)),
    lambda: vit(**{**VIT, 'depth': 0}),
    lambda: vit(**{**VIT, 'heads': 0}),
    lambda: vit(**{**VIT, 'patch': 0}),
    lambda: vit(**VIT, mlp_ratio=0.0),
    lambda: vit(**{**VIT, 'std': (0.5, 0.0, 0.5)}),
    lambda: decoder(**{**DECODER, 'vocabulary': 0}),
    lambda: decoder(**DECODER, eps=0.0),
    lambda: decoder(**DECODER, rope_theta=0.0),
    lambda: data.random_resized_crop(0),
    lambda: data.random_crop(typing.cast(Any, 1.0)),
    lambda: data.digits(image_size=typing.cast(Any, 8.0)),
    lambda: data.class_incremental(*data.digits(8), tasks=typing.cast(Any, 2.0)),
    lambda: data.class_incremental(*data.digits(8), tasks=True),
    lambda: data.first_per_class(data.digits(8)[0], typing.cast(Any, '1')),
  ],
)
def test_odd_arguments_elsewhere_are_refused_by_name(call):
  with pytest.raises(ValueError, match=r'expected|must be'):
    call()


def test_a_factory_where_its_result_was_meant_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r'expected a PeftTransform.*lora; call it, as in lora\('):
    finetune(tiny_backbone(), CAPACITY, peft=typing.cast(Any, lora))


def test_numbers_of_numpy_and_jax_are_numbers():
  for value in (np.int64(2), np.array(2), jnp.asarray(2)):
    assert expected(value, int) is None
    assert expected(value, float) is None
  assert expected(np.float32(0.5), float) is None
  assert expected(jnp.asarray(0.5), int) == 'an integer'
  assert expected(np.float32('nan'), float) == 'a finite number'


def test_annotations_are_read_through():
  assert expected((1, 2), tuple[int, ...]) is None
  assert expected((1, 2.5), Sequence[int]) == 'a sequence, each of it an integer'
  assert expected((1, 2), tuple[int, int, int]) == '3 values'
  assert expected('12', Sequence[int]) == 'a sequence'
  assert expected({'a': 'x'}, Mapping[str, float]) == "a mapping with a finite number for 'a'"
  assert expected('b', Literal['a', 'c']) == "one of ['a', 'c']"
  assert expected(3, Callable[..., Any]) == 'a function'
  assert expected(None, int | None) is None
  assert expected('anything', Any) is None


def test_a_default_is_right_whatever_its_annotation():
  def factory(size: int = None): ...  # noqa: RUF013  # pyright: ignore[reportArgumentType]

  check_arguments(factory, {'size': None})


def test_fields_of_records_are_checked():
  check_fields(CAPACITY)
  with pytest.raises(ValueError, match=r'Capacity: tasks: expected an integer, got 2\.5'):
    check_fields(CAPACITY._replace(tasks=typing.cast(Any, 2.5)))


def test_bounds_name_the_number():
  at_least(0, a=0.0, b=None)
  above(0, a=0.1, b=None)
  with pytest.raises(ValueError, match='b must be at least 1, got 0'):
    at_least(1, a=1, b=0)
  with pytest.raises(ValueError, match='a must be positive, got nan'):
    above(0, a=math.nan)


@pytest.mark.parametrize('number', [2**63, -(2**63) - 1, 10**30])
def test_an_integer_has_64_bits(number):
  assert expected(number, int) == 'an integer of 64 bits'
  assert expected(2**63 - 1, int) is None
  assert expected(-(2**63), int | None) is None


def test_a_type_that_is_imported_for_checkers_alone_leaves_the_others_checked():
  with pytest.raises(ValueError, match='keep_tasks: expected True or False'):
    RunOptions(keep_tasks='no', console=None)
  with pytest.raises(ValueError, match='save_every: expected a finite number, got inf'):
    RunOptions(save_every=math.inf)
