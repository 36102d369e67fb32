import pytest

from pecft_jax.assignments import options_of
from pecft_jax.backbones import vit
from pecft_jax.catalog import Choice, choose, find
from pecft_jax.commands.files import find_experiment, load_experiment, parse_flags
from pecft_jax.commands.run import RunFlags
from pecft_jax.presets import Preset, preset, presets
from pecft_jax.typing import Capacity

MODEL = vit(
  image_size=8, channels=1, patch=4, width=8, depth=1, heads=2, mean=(0.5,), std=(0.5,)
)  # fmt: skip
every_preset = pytest.mark.parametrize('name', presets())


@every_preset
def test_a_preset_builds(name):
  found = preset(name)
  options = {part: dict(values) for part, values in found.options.items()}
  options.get('ranpac', {})['projection'] = 16
  choice = Choice(found.method, found.peft, found.wrap, options)
  assert choice.build(MODEL, Capacity(2, 4)).capacity.tasks == 2
  if found.recipe is not None:
    assert found.recipe(found.learning_rate).settings['learning_rate'] == found.learning_rate


@every_preset
def test_every_option_is_one_of_a_part_in_use(name):
  found = preset(name)
  transform = choose(found.method, peft=found.peft).transform
  kinds = {found.method: 'method', **dict.fromkeys(found.wrap, 'wrapper')}
  kinds |= {} if transform is None else {transform: 'transform'}
  for part, values in found.options.items():
    assert set(values) <= set(options_of(find(kinds[part], part))), part


@every_preset
def test_what_is_recalled_is_a_field(name):
  assert set(preset(name).recalled) <= set(Preset._fields)
  assert ' at ' in preset(name).where  # A repository at a commit.


def test_an_unknown_preset_suggests_the_nearest():
  with pytest.raises(ValueError, match="unknown preset 'l2p@pilt'; did you mean 'l2p@pilot'"):
    preset('l2p@pilt')


def test_a_preset_sets_flags_and_flags_go_before_it():
  function = load_experiment(find_experiment('split_digits'))
  args = ['--preset', 'l2p@pilot', '--epochs', '1']
  values, _ = parse_flags(function, args, 'pecft', RunFlags)
  assert (values['method'], values['batch_size'], values['epochs']) == ('l2p', 16, 1)
  assert values['learning_rate'] == 1.875e-3
  made = function(**{**values, 'bounds': False})
  assert made.method.settings['length'] == 5
  assert made.training.recipe.settings['learning_rate'] == 1.875e-3
