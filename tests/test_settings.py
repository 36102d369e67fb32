"""What a record says of how it was made."""

import ast
import collections
import dataclasses
import enum
import functools
import inspect
import json
import math
import operator
import os
import pathlib
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tinies import OF_CLASSES, needs_of

from pecft_jax import data
from pecft_jax.backbones.families.decoder.model import decoder
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.catalog import own_transform
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.peft import PEFTS, adaptformer, at_layers, bank, bottleneck, chain, lora, per_site
from pecft_jax.schedules import constant, cosine
from pecft_jax.settings import recorded, settings_of
from pecft_jax.sources import sha256_of_json
from pecft_jax.train import adam, recipe, sgd, warmup
from pecft_jax.typing import Capacity, PeftTransform


def tiny_vit(**options):
  sizes = {'image_size': 8, 'channels': 1, 'patch': 4, 'width': 8, 'depth': 1, 'heads': 2}
  return vit(**{**sizes, 'mean': (0.5,), 'std': (0.5,), **options})


@functools.cache
def backbone():
  """Wide enough for the ranks that methods have by default."""
  return tiny_vit(width=64)


def mine(scale=2.0, function=jnp.tanh):
  """A transform whose factory is not decorated."""

  def init_one(key, spec, weights):
    del key, spec, weights
    return jnp.zeros(())

  def run(leaf, next_fn, *args):
    return function(next_fn(*args)) * (scale + leaf)

  return per_site('linear', 'attn/q$', init_one, run)


def methods(peft: PeftTransform | None = None) -> dict[str, Any]:
  """Every method that is registered, and every wrapper around one."""
  found = {}
  for name, factory in OF_CLASSES.items():
    takes = 'peft' in inspect.signature(factory).parameters
    own = adaptformer(width=3) if 'adapters' in needs_of(name) else peft
    parts = {'peft': own} if takes and peft else {}
    found[name] = factory(backbone=backbone(), capacity=Capacity(2, 4), **parts)
  wrapped = {name: wrapper(found['finetune']) for name, wrapper in WRAPPERS.items()}
  return {**found, **wrapped}


@functools.cache
def with_two_transforms() -> tuple[dict[str, Any], dict[str, Any]]:
  """`methods` with their own transforms, and with another."""
  return methods(), methods(lora(rank=2, alpha=1.0))


def everything() -> dict[str, Any]:
  """Settings of all factories of the library, by name."""
  records = {
    **{f'peft {name}': factory() for name, factory in PEFTS.items()},
    **{f'method {name}': method for name, method in methods().items()},
    'chain': chain(a=lora(), b=mine()),
    'at_layers': at_layers(lora(), range(1)),
    'bank': bank(lora(), 3),
    'adam': adam(1e-3, schedule=warmup(0.1, constant)),
    'sgd': sgd(1e-2),
    'recipe': recipe(optax.scale_by_lion(), 1e-3),
    'views': data.compose(data.random_crop(2), data.horizontal_flip(), data.random_resized_crop()),
    'vit': backbone(),
    'decoder': decoder(vocabulary=8, width=8, depth=1, heads=2, kv_heads=1, hidden=8, length=4),
    'by hand': mine(),
  }
  return {name: settings_of(record) for name, record in records.items()}


def test_settings_of_every_factory_are_plain_json_and_the_same_in_another_process():
  here = everything()
  again = json.loads(json.dumps(here, allow_nan=False))
  assert again == here
  assert '0x' not in json.dumps(here)
  environment = {**os.environ, 'PYTHONHASHSEED': '7'}
  program = 'import json, sys; sys.path.insert(0, "tests"); import test_settings as t; '
  there = subprocess.run(
    [sys.executable, '-c', program + 'print(json.dumps(t.everything()))'],
    env=environment, capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  # Its tests have another module name there.
  plain = lambda text: re.sub(rf'"{re.escape(__name__)}\.|"test_settings\.', '"', text)
  assert json.loads(plain(there)) == json.loads(plain(json.dumps(here)))


OTHERS = {int: lambda v: v + 1, float: lambda v: 0.8 * v + 0.11, bool: lambda v: not v}


@pytest.mark.parametrize('name', sorted(PEFTS))
def test_each_argument_of_a_transform_counts(name):
  factory = PEFTS[name]
  for argument, value in factory().settings.items():
    if argument == 'name' or type(value) not in OTHERS:
      continue
    other = factory(**{argument: OTHERS[type(value)](value)})
    assert other.settings != factory().settings, argument


@pytest.mark.parametrize('name', sorted({**OF_CLASSES, **WRAPPERS}))
def test_each_argument_of_a_method_counts(name):
  own, other = (found[name].settings for found in with_two_transforms())
  assert own['name'] == name
  takes_none = name in METHODS and own_transform(METHODS[name]) is None
  assert own.get('peft', own) is not None or takes_none
  inner = 'inner' if name in WRAPPERS else 'peft'
  if inner in own:
    assert own != other
    (key,) = [key for key in own if own[key] != other[key]]
    assert key == inner


def test_defaults_count_as_if_they_were_given():
  assert lora().settings == lora(r'attn/(q|v)$', 8, dropout=0.0).settings
  assert adam(1e-3).settings == adam(1e-3, schedule=cosine, clip=None).settings


def test_wrappers_and_transforms_are_nested():
  method = WRAPPERS['ewc'](
    METHODS['finetune'](backbone(), Capacity(2, 4), peft=lora(rank=2, alpha=8))
  )
  settings = method.settings
  assert settings['strength'] == 100.0
  assert settings['inner']['peft'] == lora(rank=2, alpha=8).settings
  assert settings['inner']['capacity']['classes'] == 4
  assert settings['inner']['backbone']['name'] == 'vit'


def test_the_outer_factory_names_what_it_makes():
  assert PEFTS['rslora']().settings['name'] == 'rslora'
  assert METHODS['joint'](backbone(), Capacity(2, 4)).settings['name'] == 'joint'


def test_the_order_of_a_chain_counts():
  first, second = lora(rank=1), lora(rank=2)
  assert chain(a=first, b=second).settings != chain(b=second, a=first).settings


def test_schedules_count():
  settings = {json.dumps(adam(1e-3, schedule=each).settings) for each in (
    cosine, constant, warmup(0.1, cosine), warmup(0.2, cosine), warmup(0.1, constant)
  )}  # fmt: skip
  assert len(settings) == 5


def test_directions_of_optax_count_with_their_arguments():
  directions = (optax.scale_by_adam(), optax.scale_by_adam(b1=0.8), optax.trace(0.9))
  settings = [recipe(direction, 0.1).settings for direction in directions]
  assert settings[0] != settings[1] != settings[2]
  assert settings[0] == recipe(optax.scale_by_adam(), 0.1).settings


def test_remat_is_no_setting_and_the_dtype_is_one():
  policy = jax.checkpoint_policies.dots_saveable
  assert tiny_vit(width=64, remat=policy).settings == backbone().settings
  assert tiny_vit(width=64, dtype=jnp.bfloat16).settings['dtype'] == 'bfloat16'
  assert tiny_vit(width=64, dtype='float32').settings == backbone().settings


def test_a_transform_by_hand_counts_with_what_its_functions_close_over():
  assert settings_of(mine(2.0)) == settings_of(mine(2.0))
  assert settings_of(mine(2.0)) != settings_of(mine(3.0))
  assert settings_of(mine(function=jnp.sin)) != settings_of(mine(function=jnp.cos))


def test_what_is_replaced_on_a_record_counts():
  changed = lora()._replace(merge=None)
  assert settings_of(changed) == {**lora().settings, 'changed': {'merge': None}}
  method = METHODS['finetune'](backbone(), Capacity(2, 4), peft=changed)
  assert method.settings['peft']['changed'] == {'merge': None}


def test_settings_by_hand_are_believed():
  settings = {'name': 'mine', 'version': 2}
  assert settings_of(mine()._replace(settings=settings)) == settings


def test_a_factory_of_a_users_own_counts_by_its_source():
  assert recorded(mine)(3.0).settings == {
    'name': 'mine',
    'source': recorded(mine)(1.0).settings['source'],
    'scale': 3.0,
    'function': {'function': 'jax.numpy.tanh'},
  }
  assert len(recorded(mine)().settings['source']) == 16


def test_functions_with_other_text_are_others():
  first, second = lambda x: x + 1, lambda x: x + 2
  both = (lambda x: x + 1, lambda x: x + 2)
  assert settings_of(first) != settings_of(second)
  assert settings_of(both[0])['sha256'] != settings_of(both[1])['sha256']


FACTOR = 2.0


def test_constants_that_a_function_reads_count(monkeypatch):
  def scaled(x):
    return FACTOR * x

  before = settings_of(scaled)
  monkeypatch.setitem(globals(), 'FACTOR', 3.0)
  assert settings_of(scaled) != before


def test_a_function_that_calls_itself_has_an_end():
  def depth(n):
    return n and 1 + depth(n - 1)

  assert settings_of(depth) == settings_of(depth)


class Reservoir(NamedTuple):
  size: int


class Herding(NamedTuple):
  size: int


def made(body='', decorator=dataclasses.dataclass, **names):
  """A class `Made` with a text of its own, in which names have values."""
  text = f'class Made:\n  size: int = 2\n{body}'
  names['__name__'] = 'mine'
  exec(compile(text, '<made>', 'exec'), names)
  return decorator(names['Made'])


def scaled(factor):
  """A decorator that keeps the name of what it changes."""

  def decorate(function):
    @functools.wraps(function)
    def run(x):
      return factor * function(x)

    return run

  return decorate


def mean(x):
  return x.mean()


def ruled(factor):
  """A function whose derivative is its own, times a factor."""
  function = jax.custom_jvp(mean)
  function.defjvp(lambda primals, tangents: (mean(*primals), factor * tangents[0]))
  return function


def reads(thing):
  """A function that closes over a module, and over something else."""
  module = np
  return lambda x: module.exp(thing)(x)


NAMED = collections.namedtuple('NAMED', 'name named')
METHOD, OTHER = '  def __call__(self, x): return x\n', '  def __call__(self, x): return -x\n'
READS = '  def __call__(self, x): return FACTOR * x\n'
BIG = np.zeros(1 << 20, np.float32)
DIFFER = {
  'an array and its dtype': (np.zeros(2, np.float32), np.zeros(2, np.int32)),
  'an array and its shape': (np.zeros((2, 3)), np.zeros((3, 2))),
  'an array and its order of bytes': (np.zeros(2, '<f4'), np.zeros(2, '>f4')),
  'large arrays with one other element': (BIG, np.concatenate([BIG[1:], [np.float32(1)]])),
  'arrays of jax': (jnp.arange(3), jnp.arange(1, 4)),
  'arrays in bfloat16': (jnp.ones(2, jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)),
  'arrays of objects': (np.array([{'a': BIG}], object), np.array([{'a': BIG + 1}], object)),
  'an array of a class of its own': (np.eye(2).view(np.recarray), np.eye(2)),
  'empty arrays': (np.zeros((0, 2)), np.zeros((0, 3))),
  'keys': (jax.random.key(0), jax.random.key_data(jax.random.key(0))),
  'keys of two kinds': (jax.random.key(0, impl='rbg'), jax.random.key(0, impl='unsafe_rbg')),
  'infinities': (math.inf, -math.inf),
  'infinity and what is no number': (math.nan, math.inf),
  'scalars of numpy': (np.float32(0.5), np.float32(0.25)),
  'complex numbers': (1j, 2j),
  'bytes': (b'a' * 100, b'a' * 99 + b'b'),
  'bytes and a string': (b'a', 'a'),
  'dtypes': (np.dtype('float32'), np.dtype('float16')),
  'dtypes and the order of bytes': (np.dtype('<f4'), np.dtype('>f4')),
  'dtypes with fields': (np.dtype([('a', 'f4')]), np.dtype([('b', 'i4')])),
  'types for dtypes': (jnp.bfloat16, jnp.float32),
  'paths': (pathlib.Path('a'), pathlib.Path('b')),
  'patterns': (re.compile('a'), re.compile('a', re.IGNORECASE)),
  'patterns of bytes': (re.compile(b'a'), re.compile(b'b')),
  'a set and a list': ({1, 2}, [1, 2]),
  'sets': ({1, 2}, {1, 3}),
  'a number and a string as a key': ({1: 'a'}, {'1': 'a'}),
  'two keys that are written alike': ({1: 'a', '1': 'b'}, {'1': 'b'}),
  'a key that is called order': ({'a': 1, 'order': 2}, {'a': 1, 'order': 3}),
  'the order of keys': ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}),
  'mappings with defaults': (collections.defaultdict(int), collections.defaultdict(list)),
  'members of an enum': tuple(enum.Enum('Kind', {'A': 1, 'B': 2})),
  'enums with other values': (enum.Enum('Kind', {'A': 1}).A, enum.Enum('Kind', {'A': 2}).A),
  'enums of tuples': (enum.Enum('Kind', {'A': (1,)}).A, enum.Enum('Kind', {'A': (2,)}).A),
  'fields of a dataclass': (made()(2), made()(3)),
  'fields called name and named': (NAMED(1, 2), NAMED(2, 2)),
  'what a dataclass computes': (made(METHOD)(), made(OTHER)()),
  'constants that a dataclass reads': (made(READS, FACTOR=2.0)(), made(READS, FACTOR=3.0)()),
  'classes': (made(METHOD), made(OTHER)),
  'methods by their owner': (made(METHOD)(2).__call__, made(METHOD)(3).__call__),
  'methods by their text': (made(METHOD)().__call__, made(OTHER)().__call__),
  'lambdas over numbers': tuple(lambda x, k=k: k * x for k in (1, 2)),
  'lambdas over arrays': (reads(np.zeros(2)), reads(np.ones(2))),
  'lambdas over records': (reads(made()(2)), reads(made()(3))),
  'partials by their arguments': (functools.partial(mine, 2.0), functools.partial(mine, 3.0)),
  'partials by their names': (functools.partial(mine, scale=2), functools.partial(mine, 2)),
  'a function and its gradient': (jnp.sin, jax.grad(jnp.sin)),
  'a gradient and one with the value': (jax.grad(mean), jax.value_and_grad(mean)),
  'a function over axes': (jax.vmap(mean, in_axes=0), jax.vmap(mean, in_axes=1)),
  'a function and what bears its name': (jnp.tanh, scaled(2.0)(jnp.tanh)),
  'what a decorator closes over': (scaled(2.0)(mean), scaled(3.0)(mean)),
  'compiled functions': (jax.jit(mean), jax.jit(jnp.sin)),
  'derivatives of their own': (ruled(1.0), ruled(2.0)),
  'functions of numpy': (np.exp, np.log),
  'modules': (math, operator),
}


@pytest.mark.parametrize(('first', 'second'), DIFFER.values(), ids=list(DIFFER))
def test_values_that_differ_have_other_settings(first, second):
  first, second = settings_of(first), settings_of(second)
  assert first != second
  assert sha256_of_json(first) != sha256_of_json(second)


SAME = {
  'a scalar of numpy or jax and the number': (np.float64(0.5), jnp.float32(0.5)),
  'a path and its text': (pathlib.PurePosixPath('a/b'), 'a/b'),
  'a dtype and its type': (np.dtype('float32'), jnp.float32),
  'a list and a tuple': ([1, 2], (1, 2)),
  'sets in another order': ({'b', 'a', 'c'}, {'c', 'b', 'a'}),
  'an array and one with gaps': (np.arange(6)[::2], np.array([0, 2, 4])),
  'a function and the function when compiled': (mean, jax.jit(mean)),
  'a function over the same axis': (jax.vmap(mean, 1), jax.vmap(mean, in_axes=1)),
  'functions over the same': (reads(np.zeros(2)), reads(np.zeros(2))),
  'what a decorator makes again': (scaled(2.0)(mean), scaled(2.0)(mean)),
  'a class with the same text': (made(METHOD)(), made(METHOD)()),
}


@pytest.mark.parametrize(('first', 'second'), SAME.values(), ids=list(SAME))
def test_values_that_mean_the_same_have_the_same_settings(first, second):
  assert settings_of(first) == settings_of(second)


def test_the_text_of_a_decorator_counts():
  def first(function):
    return functools.wraps(function)(lambda x: 2 * function(x))

  def second(function):
    return functools.wraps(function)(lambda x: 3 * function(x))

  assert settings_of(first(mean)) != settings_of(second(mean))


def test_a_class_that_a_function_reads_counts():
  found = []
  for body in (METHOD, OTHER):
    names = {'Part': made(body), '__name__': 'mine'}
    exec('def build(x): return Part()(x)', names)
    found.append(settings_of(names['build']))
  assert found[0] != found[1]


def test_settings_by_hand_that_are_no_json_are_refused():
  with pytest.raises(ValueError, match='expected settings that are plain JSON, got'):
    settings_of(mine()._replace(settings={'name': 'mine', 'weights': np.ones(2)}))


def test_values():
  array = np.arange(3.0)
  assert settings_of(array) == settings_of(array.copy())
  assert settings_of(array) != settings_of(array[::-1])
  assert settings_of(np.float64(0.5)) == settings_of(jnp.float32(0.5)) == 0.5
  assert settings_of(jax.random.key(0)) != settings_of(jax.random.key(1))
  assert settings_of(math.inf) == 'inf'
  assert settings_of(Reservoir(2)) != settings_of(Herding(2))
  assert settings_of(np.float32) == settings_of(jnp.float32) == 'float32'


class Opaque:
  """Says nothing of itself, but has what a function and a type of numpy have."""

  def __init__(self):
    functools.update_wrapper(self, mean)
    self.dtype = np.dtype('float32')

  def __call__(self, x):
    return x


def gone():
  """An array whose memory was given back."""
  array = jnp.zeros(2)
  array.delete()
  return array


REFUSED = [
  Opaque(), [Opaque()], {'a': Opaque()}, Opaque().__repr__, functools.partial(Opaque()), object(),
  operator.itemgetter(0), np.poly1d([1, 2]), np.vectorize(mean), np.frompyfunc(mean, 1, 1),
  np.ma.array([1, 2], mask=[0, 1]), np.random.default_rng(0), np.array([Opaque()], object),
  iter([1]), (x for x in 'a'), slice(2), gone(),
]  # fmt: skip


@pytest.mark.parametrize('value', REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_identified_is_refused(value):
  with pytest.raises(ValueError, match=r'nothing says which .* this is; .*recorded'):
    settings_of(value)


def test_a_function_closed_over_an_object_is_refused_with_the_remedy():
  opaque = Opaque()
  expected = r'bottleneck: activation: <lambda> closes over: opaque: nothing says which Opaque'
  with pytest.raises(ValueError, match=expected):
    bottleneck('mlp$', 4, activation=lambda x: x if opaque else -x)


def test_a_factory_that_returns_neither_is_refused():
  with pytest.raises(TypeError, match='expected it to return a function, or a record'):
    recorded(lambda: 3)()


def test_settings_leave_records_hashable():
  assert hash(lora()) != hash(lora(rank=4))


RECORDS = {'PeftTransform', 'ContinualMethod', 'Augmentation', 'Recipe', 'Problem', 'Schedule'}
# Parts of factories, and looking up by name: what they return is recorded elsewhere, or by hand.
PARTS = {
  'from_forward', 'wrap', 'per_site', 'summed', 'mixed', 'routed', 'peft_by_name', 'method_by_name',
  'recipe_of', 'method_of', 'added', 'dense_sites',
  # Composed of what is.
  'parts', 'parts_and_brightness', 'parts_from_a_twentieth', 'shifts', 'flips', 'most_of_it',
  'shifts_and_brightness',
  'of_heads', 'of_identity', 'trained_part', 'sensitive_entries',
}  # fmt: skip


def test_every_factory_of_the_library_is_recorded():
  unrecorded = set()
  for file in sorted((pathlib.Path(data.__file__).parents[1]).rglob('*.py')):
    for node in ast.parse(file.read_text(encoding='utf-8')).body:
      makes = isinstance(node, ast.FunctionDef) and node.returns is not None
      if makes and ast.unparse(node.returns) in RECORDS and not node.name.startswith('_'):
        decorators = ' '.join(map(ast.unparse, node.decorator_list))
        unrecorded |= {node.name} - PARTS if 'recorded' not in decorators else set()
  assert not unrecorded
