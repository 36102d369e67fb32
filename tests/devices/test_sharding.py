"""Meshes, and what lies on them; no devices are needed to apply rules."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from pecft_jax.continual.memory.buffer import Buffer
from pecft_jax.continual.memory.moments import Moments
from pecft_jax.continual.memory.statistics import ClassSums
from pecft_jax.devices.rules import Rule, fsdp, split_memory, tensor_parallel
from pecft_jax.devices.sharding import (
  Layout,
  batched,
  check_batches,
  check_rules,
  describe_rules,
  make_mesh,
  one_device,
  replicated,
  traced_on,
  tree_shardings,
)
from pecft_jax.paths import named_leaves
from pecft_jax.peft.lowrank.lora import LoraDelta

MESH = AbstractMesh((4, 2), ('data', 'model'))


def _shape(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


TREE = {
  'block_0': {
    'attn': {
      'qkv': {'kernel': _shape(3, 10, 6), 'bias': _shape(3, 6)},
      'out': {'kernel': _shape(6, 10)},
    },
    'mlp': {'fc1': {'kernel': _shape(6, 7)}},
  },
  'blocks': {'attn': {'q': {'kernel': _shape(3, 8, 8)}}},
  'bank': {'block_0/attn/q': LoraDelta(_shape(5, 6, 2), _shape(5, 2, 6))},
  'block_1': {'mlp': {'gate': {'kernel': _shape(6, 8)}, 'down': {'kernel': _shape(8, 6)}}},
  'embed': {'table': _shape(12, 8)},
  'fc2': {'block_0/mlp/fc2': LoraDelta(_shape(12, 2), _shape(2, 6))},
  'gram': _shape(16, 16),
}


def _specs(rules, tree=TREE):
  shardings = tree_shardings(Layout(MESH, rules), tree)
  return {name: s.spec for name, s in named_leaves(shardings) if any(s.spec)}


def test_everything_is_whole_by_default():
  assert _specs(()) == {}


def test_the_first_rule_decides():
  rules = (('qkv/kernel', ()), ('kernel', (None, 'model')))
  specs = _specs(rules, {'block_0': {'attn': TREE['block_0']['attn']}})
  assert specs == {'block_0/attn/out/kernel': P(None, 'model')}


def test_axes_count_from_the_last():
  specs = _specs(((r'q/kernel', ('model', None)),), {'blocks': TREE['blocks']})
  assert specs == {'blocks/attn/q/kernel': P(None, 'model', None)}


def test_tensor_parallel_splits_weights_and_what_adapts_them():
  assert _specs(tensor_parallel()) == {
    # Of q, k and v each a part of the heads.
    'block_0/attn/qkv/kernel': P(None, None, 'model'),
    'block_0/attn/qkv/bias': P(None, 'model'),
    'block_0/attn/out/kernel': P('model', None),
    # mlp/fc1 has 7 outputs, and stays whole.
    'block_1/mlp/gate/kernel': P(None, 'model'),
    'block_1/mlp/down/kernel': P('model', None),
    'embed/table': P('model', None),
    'blocks/attn/q/kernel': P(None, None, 'model'),
    'bank/block_0/attn/q/b': P(None, None, 'model'),
    'fc2/block_0/mlp/fc2/a': P('model', None),
  }


def test_tensor_parallel_may_split_the_other_dimension_too():
  specs = _specs(tensor_parallel('model', 'data'), {'blocks': TREE['blocks'], 'fc2': TREE['fc2']})
  assert specs == {
    'blocks/attn/q/kernel': P(None, 'data', 'model'),
    'fc2/block_0/mlp/fc2/a': P('model', None),
  }


def test_fsdp_splits_the_rows_of_matrices():
  assert _specs(fsdp()) == {
    'blocks/attn/q/kernel': P(None, 'data', None),
    'block_1/mlp/down/kernel': P('data', None),
    'embed/table': P(None, 'data'),
    'fc2/block_0/mlp/fc2/a': P('data', None),
  }


def _moments(width, classes):
  return Moments(
    _shape(), _shape(width), _shape(classes), _shape(3, width, width), _shape(width, classes)
  )


CARRIED = {
  'memory': {
    'moments': _moments(16, 4),
    'held': _moments(7, 4),  # Nothing divides it.
    'means': ClassSums(_shape(5, 4), _shape(5, 4, 8)),
    'buffer': Buffer({'x': _shape(12, 4, 6, 3), 'y': _shape(12), 'text': _shape(12, 9)}, _shape()),
  },
}


def test_what_methods_carry_is_split():
  assert _specs(split_memory(), CARRIED) == {
    'memory/moments/half': P(None, 'data', None),
    'memory/means/sums': P(None, None, 'data'),
    'memory/buffer/items/x': P('data', None, None, None),
    'memory/buffer/items/y': P('data'),
    'memory/buffer/items/text': P('data', None),
  }


def test_gram_matrices_may_be_split_over_two_axes():
  assert _specs(split_memory('data', 'model'), CARRIED)['memory/moments/half'] == P(
    None, 'data', 'model'
  )


def test_buffers_that_the_devices_do_not_divide_are_whole():
  buffer = {'buffer': Buffer({'x': _shape(10, 4, 4, 1)}, _shape())}
  assert _specs(split_memory(), buffer) == {}


def test_what_declares_no_axes_is_whole_whatever_it_is_called():
  tree = {'block_0/attn/q': {'a': _shape(8, 2), 'b': _shape(2, 8)}, 'sums': _shape(8, 8)}
  assert _specs((*tensor_parallel(), *fsdp(), *split_memory()), tree) == {}


def test_a_type_of_ones_own_declares_what_may_be_split():
  class KronDelta(NamedTuple):
    AXES = {'right': ('block', 'out')}
    left: Any
    right: Any

  tree = {'delta': {'block_0/mlp/fc1': KronDelta(_shape(8, 8), _shape(8, 8))}}
  assert _specs(tensor_parallel(), tree) == {'delta/block_0/mlp/fc1/right': P(None, 'model')}
  own = Rule('delta/', {'block': 'data'})
  assert _specs((own,), tree) == {'delta/block_0/mlp/fc1/right': P('data', None)}
  with pytest.raises(ValueError, match=r"does not fit 'delta/x/right' of shape \(6, 8\)"):
    _specs((own,), {'delta': {'x': KronDelta(_shape(8, 8), _shape(6, 8))}})


def test_tables_can_be_joined():
  tree = {**TREE, **CARRIED}
  specs = _specs(tensor_parallel() + fsdp() + split_memory(), tree)
  assert specs['block_0/attn/out/kernel'] == P('model', None)
  assert specs['memory/moments/half'] == P(None, 'data', None)


def test_a_rule_before_a_table_overrules_it():
  specs = _specs((('attn/out/', (None, 'model')), *tensor_parallel()))
  assert specs['block_0/attn/out/kernel'] == P(None, 'model')
  assert specs['block_0/attn/qkv/bias'] == P(None, 'model')


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (('fc1/kernel', (None, 'model')), r"does not fit 'block_0/mlp/fc1/kernel' of shape \(6, 7\)"),
    (('out/kernel', ('data', ..., None, None)), r'does not fit .* of shape \(6, 10\)'),
    (('gram', ('expert', None)), r"names \['expert'\]; mesh axes: \('data', 'model'\)"),
  ],
)
def test_rules_that_do_not_fit_are_refused(rule, message):
  with pytest.raises(ValueError, match=message):
    _specs((rule,))


def test_optional_rules_leave_whole_what_they_do_not_fit():
  assert _specs((Rule('fc1/kernel', (None, 'model'), optional=True),)) == {}
  assert _specs((Rule('fc1/kernel', (None, 'expert'), optional=True),)) == {}


def test_optional_rules_leave_what_they_do_not_fit_to_those_after_them():
  rules = (Rule('q/kernel', (None, 'expert'), optional=True), ('q/kernel', ('model', None)))
  assert _specs(rules) == {'blocks/attn/q/kernel': P(None, 'model', None)}


def test_rules_without_a_leaf_are_refused():
  layout = Layout(MESH, (('kernel', ()), ('qkv/kernel', (None, 'model'))))
  with pytest.raises(ValueError, match=r"'qkv/kernel' decides about no leaf; leaves: \['bank"):
    check_rules(layout, TREE)
  check_rules(Layout(MESH, (('qkv/kernel', ()), ('kernel', ()))), TREE)
  check_rules(Layout(MESH, tensor_parallel() + fsdp()), {'x': _shape(2)})


def test_a_rule_may_be_used_by_any_tree():
  layout = Layout(MESH, (('gram', ()), ('head', ())))
  check_rules(layout, TREE, {'head': _shape(2)})


def test_the_table_tells_what_each_rule_decides():
  rules = (*tensor_parallel(), ('gram$', ('data', 'model')))
  tree = {**TREE, 'gram': _shape(1000, 2000)}  # 8 MB.
  del tree['embed']
  heading, _, *lines = describe_rules(Layout(MESH, rules), tree).splitlines()
  assert heading == 'data 4, model 2'
  assert lines[0].split()[0] == '3'
  assert lines[0].split()[-3:] == ['-,', 'model', rules[0].pattern]
  unused = next(line for line in lines if line.endswith('embed/table$'))
  assert unused.split()[0] == '0'
  assert lines[-2].split() == ['1', '8', 'MB', '1', 'MB', 'data,', 'model', 'gram$']
  assert lines[-1].split()[0] == '3'
  assert lines[-1].split()[-3:] == ['whole', 'all', 'others']


def test_traced_functions_see_the_mesh():
  layout = one_device()
  seen = []

  def look(x):
    seen.append(jax.sharding.get_abstract_mesh().axis_names)
    return x

  jax.jit(traced_on(layout, look))(1.0)
  assert seen == [('data',)]


def test_batch_sizes_must_fit_the_data_axis():
  check_batches(Layout(MESH), {'batch_size': 8})
  with pytest.raises(ValueError, match=r"eval_batch_size 10 .* 4 devices of axis 'data'"):
    check_batches(Layout(MESH), {'batch_size': 8, 'eval_batch_size': 10})


def test_meshes_over_the_devices_there_are():
  count = jax.device_count()
  assert make_mesh().shape == {'data': count}
  assert make_mesh({'data': count, 'model': 1}).axis_names == ('data', 'model')
  with pytest.raises(ValueError, match=f'does not fit {count} devices'):
    make_mesh({'data': count, 'model': 2})
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    make_mesh({'model': count})
  assert one_device().mesh.size == 1


def test_axes_are_auto():
  types = {str(t) for t in (*make_mesh().axis_types, *one_device().mesh.axis_types)}
  assert types == {str(AxisType.Auto)}


def test_batches_are_split_and_counts_are_not():
  assert batched(Layout(MESH)).spec == P('data')
  assert replicated(Layout(MESH)).spec == P()
