from pecft_jax.commands.meshes import layout_of
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
