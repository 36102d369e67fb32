"""Where the leaves of each method lie; a mesh of shapes alone decides it, without devices."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from pecft_jax.backbones import architecture
from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.continual import derpp, ease, ewc, finetune, lwf, olora, ranpac, simplecil
from pecft_jax.devices.sharding import tree_shardings
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lowrank.lora import lora
from pecft_jax.train import Layout, adam, fsdp, split_memory, tensor_parallel
from pecft_jax.train.state import init_state
from pecft_jax.typing import Capacity

CAPACITY = Capacity(5, 7)
TWO = AbstractMesh((4, 2), ('data', 'model'))
ONE = AbstractMesh((8,), ('data',))
BOTH = Layout(TWO, (*tensor_parallel(), *split_memory('data', 'model')))
WHOLE = Layout(ONE, split_memory())
ROWS = Layout(ONE, (*fsdp(), *split_memory()))


@pytest.fixture(scope='module')
def backbone():
  """A transformer whose axes all differ."""
  return vit(
    image_size=12, channels=3, patch=4, width=32, depth=2, heads=4, mlp_ratio=3, mean=(0.5,) * 3,
    std=(0.5,) * 3,
  )  # fmt: skip


PEFT = lora(r'attn/(q|out)$|mlp', rank=2)


def _leaves(method, backbone, layout):
  """Name -> (spec, shape, shape on one device) of state and backbone."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = jax.eval_shape(backbone.init, key)
  state = jax.eval_shape(lambda k, f: init_state(method, adam(0.1), k, f), key, frozen)
  found = {}
  for tree in (state, frozen):
    shardings = dict(named_leaves(tree_shardings(layout, tree)))
    for name, leaf in named_leaves(tree):
      sharding = shardings[name]
      found[name] = tuple(sharding.spec), leaf.shape, sharding.shard_shape(leaf.shape)
  return found


def _specs(method, backbone, layout):
  return {name: spec for name, (spec, _, _) in _leaves(method, backbone, layout).items()}


COLUMNS, ROW = (None, 'model'), ('model', None)


def test_what_is_trained_follows_its_weight(backbone):
  specs = _specs(finetune(backbone, CAPACITY, peft=PEFT), backbone, BOTH)
  for name, spec in {
    'block_0/attn/qkv/kernel': (None, *COLUMNS),
    'block_0/attn/qkv/bias': (None, 'model'),
    'block_0/mlp/fc1/kernel': COLUMNS,
    'block_0/attn/out/kernel': ROW,
    'block_0/mlp/fc2/kernel': ROW,
    'block_0/ln1/scale': (),
    'params/delta/block_0/attn/q/b': COLUMNS,
    'params/delta/block_0/attn/q/a': (),
    'params/delta/block_0/mlp/fc2/a': ROW,
    'params/delta/block_0/mlp/fc2/b': (),
    'opt_state/0/mu/delta/block_0/attn/q/b': COLUMNS,
    'opt_state/0/nu/delta/block_0/mlp/fc2/a': ROW,
  }.items():
    assert specs[name] == spec, name


@pytest.mark.parametrize('make', [olora, ease])
def test_banks_follow_their_weight(make, backbone):
  specs = _specs(make(backbone, CAPACITY, peft=PEFT), backbone, BOTH)
  assert specs['memory/bank/block_1/attn/q/b'] == (None, *COLUMNS)
  assert specs['memory/bank/block_1/mlp/fc2/a'] == (None, *ROW)
  assert specs['memory/bank/block_1/attn/q/a'] == ()
  specs = _specs(make(backbone, CAPACITY, peft=PEFT), backbone, ROWS)
  assert specs['memory/bank/block_1/attn/q/a'] == (None, 'data', None)


def test_what_wrappers_remember_follows_its_weight(backbone):
  inner = finetune(backbone, CAPACITY, peft=PEFT)
  specs = _specs(ewc(inner), backbone, BOTH)
  for name in ('anchor', 'fisher', 'squares'):
    assert specs[f'memory/{name}/delta/block_0/attn/q/b'] == COLUMNS
  assert _specs(lwf(inner), backbone, BOTH)['memory/teacher/delta/block_0/attn/out/a'] == ROW


@pytest.mark.parametrize('layout', [WHOLE, BOTH, ROWS])
def test_buffers_are_split_over_data_where_it_divides_them(layout, backbone):
  parts = layout.mesh.shape['data']
  method = derpp(finetune(backbone, CAPACITY, peft=PEFT), size=500)
  images = _leaves(method, backbone, layout)['memory/buffer/items/x']
  assert images[1] == (500, 12, 12, 3)
  # 8 does not divide 500.
  assert images[2][0] == (500 // 4 if parts == 4 else 500)
  method = derpp(finetune(backbone, CAPACITY, peft=PEFT), size=512)
  for item in 'xyz':
    _, shape, local = _leaves(method, backbone, layout)[f'memory/buffer/items/{item}']
    assert (shape[0], local[0]) == (512, 512 // parts)


@pytest.mark.parametrize(('layout', 'parts'), [(WHOLE, 8), (BOTH, 8), (ROWS, 8)])
def test_gram_matrices_of_ranpac_take_an_eighth(layout, parts, backbone):
  leaves = _leaves(ranpac(backbone, CAPACITY, peft=PEFT, projection=10_000), backbone, layout)
  grams = [sizes for name, sizes in leaves.items() if name.endswith('moments/half')]
  assert grams
  for _, shape, local in grams:
    assert shape == (55, 1024, 1024)
    assert math.prod(local) * parts == math.prod(shape)


def test_gram_matrices_are_split_over_model_too(backbone):
  leaves = _leaves(ranpac(backbone, CAPACITY, peft=PEFT, projection=10_000), backbone, BOTH)
  assert leaves['memory/moments/half'][0] == (None, 'data', 'model')
  assert leaves['memory/moments/half'][2] == (55, 256, 512)


@pytest.mark.parametrize('make', [simplecil, lambda b, c: ease(b, c, peft=PEFT)])
def test_class_statistics_are_split_by_features(make, backbone):
  specs = _specs(make(backbone, CAPACITY), backbone, WHOLE)
  assert specs['memory/sums'][-1] == 'data'
  assert not any(specs['memory/sums'][:-1]) and not any(specs['memory/counts'])


def test_a_decoder_is_split_as_a_whole():
  backbone = architecture('llama_3.2_1b', length=64, depth=2, scan=True)
  layout = Layout(TWO, (*tensor_parallel('model', 'data'), *fsdp()))
  leaves = _leaves(finetune(backbone, CAPACITY, peft=PEFT), backbone, layout)
  assert leaves['embed/table'][0] == ('model', 'data')
  assert leaves['blocks/mlp/down/kernel'][0] == (None, 'model', 'data')
  for name in ('attn/q', 'attn/k', 'attn/v', 'mlp/gate', 'mlp/up'):
    assert leaves[f'blocks/{name}/kernel'][0] == (None, 'data', 'model')
  matrices = [sizes for name, sizes in leaves.items() if name.startswith(('blocks', 'embed'))]
  # A table by its columns where there is no other axis.
  rows = _leaves(finetune(backbone, CAPACITY, peft=PEFT), backbone, ROWS)
  assert rows['embed/table'][0] == (None, 'data')
  held = [(jnp.prod(jnp.array(s)), jnp.prod(jnp.array(n))) for _, s, n in matrices if len(s) > 2]
  assert all(whole == 8 * part for whole, part in held)
