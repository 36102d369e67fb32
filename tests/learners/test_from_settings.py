"""Records are made from their settings alone, or refused with the place that is missing."""

import json

import jax
import pytest
from tinies import ALL_WRAPPERS, METHOD_NAMES, WRAPPED_NAMES, tiny_peft
from tiny_runs import tiny_method, world_of

from pecft_jax import backbones, continual, peft, problems, recipes, schedules, typing
from pecft_jax.about import tinies
from pecft_jax.backbones import architecture
from pecft_jax.learners.from_settings import NotRemade, made_from
from pecft_jax.peft import PEFTS, adaptformer, at_layers, bottleneck, chain, lora
from pecft_jax.recipes import adam, grouped
from pecft_jax.schedules import warmup
from pecft_jax.settings import recorded, recorded_name, settings_of


def read_again(thing):
  return json.loads(json.dumps(settings_of(thing)))


@pytest.mark.parametrize('name', (*METHOD_NAMES, *WRAPPED_NAMES, ALL_WRAPPERS))
def test_every_method_is_made_from_its_settings(name):
  settings = read_again(tiny_method(name))
  made = made_from(settings, backbone=world_of(name).model.backbone)
  assert settings_of(made) == settings
  assert made.name == tiny_method(name).name


@pytest.mark.parametrize('name', tinies(PEFTS))
def test_every_transform_is_made_from_its_settings(name):
  settings = read_again(tiny_peft(name))
  assert settings_of(made_from(settings)) == settings


@pytest.mark.parametrize(
  'thing',
  [
    chain(b=lora(rank=2), a=at_layers(adaptformer(width=8), [4, 5])),
    bottleneck('mlp$', 4, activation=jax.nn.relu),
    adam(1e-3, schedule=warmup(0.1, schedules.cosine)),
    grouped(adam(1e-3), {'head': 0.1}),
    architecture('vit_glyphs16'),
    architecture('llama_3.2_1b', dtype='bfloat16'),
  ],
  ids=lambda thing: thing.settings['name'],
)
def test_what_is_nested_is_made_too(thing):
  settings = read_again(thing)
  assert settings_of(made_from(settings)) == settings


def test_a_chain_keeps_the_order_of_its_parts():
  made = made_from(read_again(chain(b=lora(rank=2), a=bottleneck('mlp$', 4))))
  assert list(made.init(jax.random.key(0), *_sites())) == ['b', 'a']


def _sites():
  backbone = architecture('vit_glyphs16', depth=1)
  return backbone.sites, backbone.init(jax.random.key(0))


@recorded
def mine(rank=2):
  return lora(rank=rank)


REFUSED = {
  'of your own': (mine(), 'mine is not made by a factory of the library'),
  'by hand': (lora()._replace(settings=None), 'is not made by a factory of the library'),
  'changed': (lora()._replace(merge=None), r"fields of lora were changed: \['merge'\]"),
  'a closure': (
    bottleneck('mlp$', 4, activation=lambda x: x),
    r'bottleneck.activation: the function .*<lambda>.* is known by its digest alone',
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_settings_do_not_hold_is_refused_with_its_place(case):
  thing, message = REFUSED[case]
  with pytest.raises(NotRemade, match=message):
    made_from(read_again(thing))


def test_another_backbone_than_that_of_the_settings_is_refused():
  with pytest.raises(NotRemade, match="its \\['backbone'\\] cannot be made"):
    made_from(read_again(tiny_method('finetune')), backbone=architecture('vit_glyphs16'))


def test_functions_come_from_the_libraries_that_are_recorded_alone():
  settings = {**read_again(bottleneck('mlp$', 4)), 'activation': {'function': 'os.system'}}
  with pytest.raises(NotRemade, match=r'os\.system is known by its digest alone'):
    made_from(settings)


def test_no_two_factories_share_a_name():
  found = {}
  for module in (typing, problems, recipes, schedules, backbones, peft, continual):
    for value in vars(module).values():
      if (name := recorded_name(value)) is not None:
        assert found.setdefault(name, value) is value, name
