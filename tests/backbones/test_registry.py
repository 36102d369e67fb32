"""Families: what the library knows of each kind of model, found from a backbone."""

import pathlib

import jax
import pytest
from jax.sharding import AbstractMesh

from pecft_jax.backbones import FAMILIES, architecture, cards, family_of
from pecft_jax.backbones import families as folders
from pecft_jax.devices.sharding import tree_shardings
from pecft_jax.peft import lora
from pecft_jax.train import Layout, tensor_parallel
from pecft_jax.typing import Backbone


def test_each_folder_is_a_family():
  here = pathlib.Path(folders.__file__).parent
  assert sorted(path.parent.name for path in here.glob('*/family.py')) == sorted(FAMILIES)


@pytest.mark.parametrize('name', sorted(FAMILIES))
def test_what_a_factory_makes_is_of_its_family(name):
  card = next(card for card in cards().values() if card.family == name)
  backbone = architecture(card.name)
  assert family_of(backbone) is FAMILIES[name]
  sites = {spec.site.path for spec in backbone.sites if spec.site.kind == 'linear'}
  assert all(family_of(backbone).naming.of(path).name for path in sites)


@pytest.mark.parametrize('name', sorted(FAMILIES))
def test_the_usual_table_splits_a_family_as_it_declares(name):
  card = next(card for card in cards().values() if card.family == name)
  backbone = architecture(card.name, depth=2)
  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = jax.eval_shape(backbone.init, key)
  linear = r'/(q|k|v|out|fc1|fc2|gate|up|down)$'
  delta = jax.eval_shape(
    lambda key, params: lora(linear, 4).init(key, backbone.sites[:-1], params), key, frozen
  )
  mesh = AbstractMesh((2, 2), ('data', 'model'))
  specs = lambda **how: tree_shardings(Layout(mesh, tensor_parallel(**how)), (frozen, delta))
  assert specs(split=FAMILIES[name].split) == specs()
  assert any('model' in sharding.spec for sharding in jax.tree.leaves(specs()))


def test_a_model_of_ones_own_is_of_no_family():
  own = Backbone('own', lambda key: {}, lambda *_: None, (), None, 1, 1)
  with pytest.raises(ValueError, match=r"belongs to no family .* families: \['decoder', 'vit'\]"):
    family_of(own)
