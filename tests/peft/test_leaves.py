"""One name for a leaf, however it is stored."""

import chex
import numpy as np
import pytest
from tiny_vit import split_qkv

from pecft_jax.peft.leaves import Block, block_of, of_layers, put_leaves, read_leaves
from pecft_jax.typing import Site, SiteSpec


def test_names_are_the_same_in_every_storage(tiny):
  sites = tiny.model.sites
  names = set(read_leaves(tiny.split_params, sites))
  assert 'block_1/attn/q/bias' in names and 'cls' in names
  assert set(read_leaves(tiny.params, sites)) == names
  assert set(read_leaves(tiny.stacked_params, sites)) == names


def test_without_sites_names_are_those_of_the_storage(tiny):
  names = set(read_leaves(tiny.stacked_params, ()))
  assert 'blocks/attn/qkv/bias' in names


@pytest.mark.parametrize('storage', ['params', 'stacked_params', 'split_params'])
def test_what_is_put_is_read_again(tiny, storage):
  params, sites = getattr(tiny, storage), tiny.model.sites
  names = ['block_1/attn/k/kernel', 'block_2/mlp/fc1/bias', 'block_1/attn/q/bias', 'norm/scale']
  values = {name: read_leaves(params, sites)[name]() + 1 for name in names}
  after = read_leaves(put_leaves(values, params), sites)
  for name, read in read_leaves(params, sites).items():
    np.testing.assert_array_equal(after[name](), values.get(name, read()), err_msg=name)


def test_leaves_that_are_not_named_are_shared(tiny):
  values = {'block_1/attn/k/bias': np.ones(24, np.float32)}
  out = put_leaves(values, tiny.stacked_params)
  assert (
    out['blocks']['mlp']['fc1']['kernel'] is tiny.stacked_params['blocks']['mlp']['fc1']['kernel']
  )


def test_a_name_without_a_leaf_is_refused(tiny):
  with pytest.raises(
    ValueError, match=r"no leaves \['block_9/ln1/scale'\] to put; leaves: \['block_0/"
  ):
    put_leaves({'block_9/ln1/scale': np.ones(24)}, tiny.params)


def test_a_foreign_tree_of_any_containers_works():
  tree = {'layers': [{'w': np.ones((2, 3))}, (np.zeros(4), np.arange(5))]}
  assert set(read_leaves(tree, ())) == {'layers/0/w', 'layers/1/0'}  # Integers are left out.
  out = put_leaves({'layers/1/0': np.full(4, 2.0)}, tree)
  np.testing.assert_array_equal(out['layers'][1][0], np.full(4, 2.0))


def test_the_part_of_some_layers_is_the_same_in_both_storages(tiny):
  part = of_layers(tiny.params, {'': [0, 2]})
  assert sorted(part) == ['block_0', 'block_2']
  chex.assert_trees_all_equal(of_layers(tiny.stacked_params, {'': [0, 2]}), part)
  assert split_qkv(part)['block_0']['attn']['q']['bias'].shape == (24,)


def test_the_block_of_a_path():
  assert block_of('block_12/attn/q') == Block('', 12)
  assert block_of('text/block_3') == Block('text', 3)
  assert block_of('encoder') is None


def test_stacks_have_names_of_their_own():
  blocks = {'qkv': {'bias': np.arange(12.0).reshape(2, 3, 2)}}
  tree = {'text': {'blocks': blocks, 'norm': np.ones(2)}, 'image': {'block_0': {'fc': np.ones(2)}}}
  sites = [
    SiteSpec(Site('linear', f'text/block_{i}/{name}', stack='text', layer=i), (), None)
    for i in range(2)
    for name in 'qkv'
  ]
  found = read_leaves(tree, sites)
  np.testing.assert_array_equal(found['text/block_1/k/bias'](), [8, 9])
  out = put_leaves({'text/block_1/k/bias': np.zeros(2), 'image/block_0/fc': np.zeros(2)}, tree)
  np.testing.assert_array_equal(out['text']['blocks']['qkv']['bias'][1], [[6, 7], [0, 0], [10, 11]])
  assert not out['image']['block_0']['fc'].any() and out['text']['norm'] is tree['text']['norm']
  assert sorted(of_layers(tree, {'text': [1], 'image': [0]})['text']) == ['block_1']
