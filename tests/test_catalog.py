import json
import sys

import jax
import numpy as np
import pytest

from pecft_jax.backbones import pretrained, vit
from pecft_jax.catalog import choose, find, own_transform
from pecft_jax.continual import METHODS, ease, ewc
from pecft_jax.interop import save_hf_peft
from pecft_jax.listing import listing
from pecft_jax.peft import PEFTS, lora
from pecft_jax.typing import Adapted, Capacity

CAPACITY = Capacity(2, 4)
MODEL = vit(
  image_size=8, channels=1, patch=4, width=8, depth=1, heads=2, mean=(0.5,), std=(0.5,)
)  # fmt: skip

MINE = """
from pecft_jax.continual import ewc, finetune
from pecft_jax.peft import lora

def mine(backbone, capacity, *, peft=None, depth: int = 1):
  return finetune(backbone, capacity, peft=peft)._replace(name=f'mine {depth}')

def twice(inner, *, times: int = 2):
  return inner._replace(name=f'{times} x {inner.name}')

def narrow(rank: int = 1):
  return lora(rank=rank)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """A module of a user's own, `my_methods_in_a_file`."""
  name = 'my_methods_in_a_file'
  (tmp_path / f'{name}.py').write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  yield name
  sys.modules.pop(name, None)


def test_names_are_those_of_the_facades():
  assert find('method', 'ease') is ease
  assert find('wrapper', 'ewc') is ewc
  assert find('transform', 'parallel').__name__ == 'parallel_adapter'


@pytest.mark.parametrize(
  ('kind', 'name', 'message'),
  [
    ('method', 'eese', "unknown method 'eese'; did you mean 'ease'"),
    ('method', 'ewc', "'ewc' is a wrapper, not a method: give it as --wrap ewc"),
    ('wrapper', 'ease', "'ease' is a method, not a wrapper: give it as --method ease"),
    ('method', 'lora', "'lora' is a transform, not a method: give it as --peft lora"),
    ('method', 'no.such.module:thing', "no module 'no.such.module' for 'no.such.module:thing'"),
    (
      'method',
      'pecft_jax.continual:eas',
      "unknown name in pecft_jax.continual 'eas'; did you mean",
    ),
    ('method', 'pecft_jax.continual:ewc', 'is a wrapper: give it as --wrap pecft_jax'),
    ('method', '.methods:slda', "expected package.module:name, got '.methods:slda'"),
    ('method', ':slda', "expected package.module:name, got ':slda'"),
  ],
)
def test_a_name_that_is_none_is_refused(kind, name, message):
  with pytest.raises(ValueError, match=message):
    find(kind, name)


def test_what_a_module_does_not_find_itself_is_told(tmp_path, monkeypatch):
  (tmp_path / 'my_broken_module.py').write_text('import not_there_at_all\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match=r'my_broken_module cannot be imported: .*not_there_at_all'):
    find('method', 'my_broken_module:thing')


def test_parts_of_a_module_of_ones_own_go_by_name(mine):
  choice = choose(
    f'{mine}:mine', peft=f'{mine}:narrow', wrap=f'ewc,{mine}:twice',
    set=[f'{mine}:mine.depth=3', f'{mine}:narrow.rank=2', f'{mine}:twice.times=5'],
  )  # fmt: skip
  method = choice.build(MODEL, CAPACITY)
  assert method.name == '5 x ewc(mine 3)'
  params, _ = jax.eval_shape(lambda key: method.init(key, MODEL.init(key)), jax.random.key(0))
  assert {leaf.shape for leaf in jax.tree.leaves(params['delta'])} == {(8, 2), (2, 8)}


def test_a_method_trains_its_own_transform_by_default():
  own = {name: own_transform(METHODS[name]) for name in METHODS}
  known = {'ease': 'adaptformer', 'olora': 'lora', 'slca': 'full', 'l2p': None, 'simplecil': None}
  assert {name: own[name] for name in known} == known
  assert set(own.values()) <= {None, *PEFTS}
  assert choose('ease').transform == 'adaptformer'
  assert choose('ease', peft='ssf').transform == 'ssf'


def test_options_reach_the_parts_and_their_settings():
  choice = choose(
    'ease', wrap='ewc', set=['ease.alpha=0.3', 'adaptformer.width=2', 'ewc.decay=0.5']
  )
  settings = choice.build(MODEL, CAPACITY).settings
  text = json.dumps(settings)
  assert settings['name'] == 'ewc' and settings['decay'] == 0.5
  assert '"alpha": 0.3' in text and '"width": 2' in text


def test_options_of_the_command_line_go_before_those_of_the_file():
  options = {'ewc': {'strength': 5.0, 'decay': 0.9}, 'er': {'size': 3}}
  choice = choose('finetune', wrap=['ewc'], set=['ewc.strength=2'], options=options)
  assert choice.options['ewc'] == {'strength': 2.0, 'decay': 0.9}
  assert options['ewc'] == {'strength': 5.0, 'decay': 0.9}


def test_an_option_of_a_part_that_is_not_in_use_is_refused():
  with pytest.raises(ValueError, match=r"'er', which is not in use; in use: \['ease', 'ssf'\]"):
    choose('ease', peft='ssf', set=['er.size=3'])
  with pytest.raises(ValueError, match="'adaptformer', which is not in use"):
    choose('ease', peft='ssf', set=['adaptformer.width=3'])


def test_a_wrapper_is_named_once():
  with pytest.raises(ValueError, match="wrapper 'ewc' is named twice: once is all it can do"):
    choose('finetune', wrap='ewc,er,ewc')


def test_what_trains_nothing_takes_no_transform():
  with pytest.raises(ValueError, match=r"simplecil trains nothing of the backbone: .* got 'lora'"):
    choose('simplecil', peft='lora')


def test_bounds_have_the_same_transform_and_no_wrappers():
  choice = choose('olora', peft='lora', wrap='ewc', set=['lora.rank=2'])
  bound = choice.plain('joint').build(MODEL, CAPACITY)
  assert bound.name == 'joint'
  assert bound.settings['peft']['rank'] == 2


def test_listings_tell_family_and_papers():
  found = listing('methods')['l2p']
  assert found['family'] == 'prompts' and found['passes'] == '2'
  assert found['papers'] == [
    {'title': 'Learning to prompt for continual learning', 'arxiv': '2112.08654'}
  ]
  assert set(listing('benchmarks')) == {'split_cifar100', 'split_digits', 'your_images'}


def test_a_directory_with_an_adapter_is_what_training_starts_from(tmp_path, monkeypatch):
  model = pretrained('vit_glyphs16')
  peft = lora(r'attn/q$', rank=2)
  delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  delta = jax.tree.map(lambda leaf: leaf + 0.5, delta)
  save_hf_peft(tmp_path / 'mine', model.backbone, Adapted(peft, delta, None), model.params)
  monkeypatch.chdir(tmp_path)
  method = choose('finetune', peft='./mine').build(model.backbone, Capacity(2, 4))
  params, _ = method.init(jax.random.key(1), model.params)
  jax.tree.map(np.testing.assert_array_equal, params['delta'], delta)
  with pytest.raises(ValueError, match='not in use'):
    choose('finetune', peft='./mine', set=['lora.rank=4'])
