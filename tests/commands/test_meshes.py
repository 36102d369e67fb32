import re

import pytest
from tiny_runs import tiny_backbone

from pecft_jax.axes import LayerSplit
from pecft_jax.backbones import FAMILIES
from pecft_jax.commands.meshes import layout_of, parse_mesh, split_of
from pecft_jax.devices.rules import TRANSFORMER
from pecft_jax.train import Rule


def test_a_mesh_with_an_axis_model_splits_layers():
  assert layout_of('', False) is None
  plain, split, both = (
    layout_of('data=1', False),
    layout_of('data=1,model=1', False),
    layout_of('data=1,model=1', True),
  )
  assert 0 < len(plain.rules) < len(split.rules) < len(both.rules)


def test_rules_of_the_command_line_go_before_those_of_the_experiment_and_the_tables():
  layout = layout_of('data=1', False, ['head/kernel$=-,data'], [('bias$', ())])
  assert layout.rules[:2] == (Rule('head/kernel$', (None, 'data')), ('bias$', ()))
  assert layout.rules[2:] == layout_of('data=1', False).rules


def test_layers_are_split_as_their_family_declares():
  assert split_of(tiny_backbone()) == FAMILIES['vit'].split
  assert split_of(tiny_backbone()._replace(family='')) == TRANSFORMER
  own = layout_of('data=1,model=1', False, split=LayerSplit('wide', 'tall', ''))
  patterns = [rule.pattern for rule in own.rules]
  assert any(re.search('^wide/kernel', pattern) for pattern in patterns)
  assert not any('attn' in pattern for pattern in patterns)


@pytest.mark.parametrize('text', ['data', 'data=0', 'data=x', 'data=1,', '=2', 'data=1,data=1'])
def test_what_is_no_mesh_is_refused(text):
  with pytest.raises(ValueError, match=r'expected a mesh as data=4,model=2|comes twice'):
    parse_mesh(text)
