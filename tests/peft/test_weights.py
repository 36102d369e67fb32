"""Reading and writing the weights of a site."""

import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.peft.weights import Weights, read, weight_sites, write


@pytest.mark.parametrize('path', ['patch', 'block_1/attn/k', 'block_2/mlp/fc2', 'block_0/ln2'])
def test_storage_does_not_show(tiny, path):
  expected = read(tiny.split_params, path)
  new = Weights(expected.main + 1, expected.bias - 1)
  for params in (tiny.params, tiny.stacked_params):
    for got, want in zip(read(params, path), expected, strict=True):
      np.testing.assert_array_equal(got, want)
    for got, want in zip(read(write(params, path, new), path), new, strict=True):
      np.testing.assert_array_equal(got, want)


def test_other_weights_stay_as_they_are(tiny):
  out = write(tiny.params, 'block_1/attn/k', Weights(jnp.zeros((24, 24)), None))
  np.testing.assert_array_equal(
    read(out, 'block_1/attn/q').main, read(tiny.params, 'block_1/attn/q').main
  )
  assert out['block_0'] is tiny.params['block_0']


def test_a_missing_site_is_an_error_that_lists_those_there_are(tiny):
  with pytest.raises(ValueError, match=r"no weights at 'block_9/attn/q'; there are weights at \['"):
    read(tiny.params, 'block_9/attn/q')


def test_a_bias_cannot_be_written_where_there_is_none():
  with pytest.raises(ValueError, match="'fc' has no bias to write to"):
    write({'fc': {'kernel': jnp.ones((2, 3))}}, 'fc', Weights(jnp.ones((2, 3)), jnp.ones(3)))


def test_a_tree_may_itself_be_one_layer():
  tree = {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)}
  (spec,) = weight_sites(tree)
  assert spec.site.path == ''
  out = write(tree, '', Weights(read(tree, '').main * 2, None))
  np.testing.assert_array_equal(out['kernel'], 2 * tree['kernel'])


def test_keys_may_be_numbers():
  tree = {'layers': {0: {'kernel': jnp.ones((2, 3))}, 1: {'kernel': jnp.ones((3, 4))}}}
  assert [spec.site.path for spec in weight_sites(tree)] == ['layers/0', 'layers/1']
  out = write(tree, 'layers/1', Weights(jnp.zeros((3, 4)), None))
  assert not out['layers'][1]['kernel'].any() and out['layers'][0] is tree['layers'][0]


def test_what_a_module_fuses_is_said_by_its_name():
  tree = {'mlp': {'gate_up': {'kernel': jnp.arange(12.0).reshape(2, 2, 3)}, 'out': {}}}
  np.testing.assert_array_equal(read(tree, 'mlp/up').main, [[6, 7, 8], [9, 10, 11]])
  out = write(tree, 'mlp/gate', Weights(jnp.zeros((2, 3)), None))
  np.testing.assert_array_equal(read(out, 'mlp/up').main, read(tree, 'mlp/up').main)
  assert not read(out, 'mlp/gate').main.any()


def test_a_name_declares_no_parts_that_its_array_does_not_have():
  with pytest.raises(ValueError, match="no weights at 'o'"):
    read({'out': {'kernel': jnp.ones((4, 3))}}, 'o')


def test_the_weights_of_a_named_stack():
  tree = {'text': {'blocks': {'qkv': {'kernel': jnp.arange(24.0).reshape(2, 3, 2, 2)}}}}
  np.testing.assert_array_equal(read(tree, 'text/block_1/k').main, [[16, 17], [18, 19]])
