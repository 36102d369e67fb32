import functools

import jax.numpy as jnp
import optax
import pytest

from pecft_jax.assignments import options_of
from pecft_jax.backbones import pretrained
from pecft_jax.benchmarks import split_digits
from pecft_jax.catalog import choose, find
from pecft_jax.commands.files import parse_flags
from pecft_jax.commands.run import RunFlags
from pecft_jax.continual import METHODS, WRAPPERS
from pecft_jax.data import random_crop
from pecft_jax.presets import preset, presets
from pecft_jax.presets.record import UNIT_RANGE, UNVERIFIED, sgd_with_l2
from pecft_jax.settings import settings_of

every_preset = pytest.mark.parametrize('name', presets())


@pytest.fixture(scope='module', autouse=True)
def loaded_once():
  """The backbone of the benchmark is read once for each value range."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(split_digits, 'pretrained', functools.cache(pretrained))
    patch.setattr(split_digits.data, 'digits', functools.cache(split_digits.data.digits))
    yield


def flags(*args):
  return parse_flags(split_digits.experiment, ['--no-bounds', *args], 'pecft', RunFlags)[0]


def run_of(name, *args):
  """The experiment that the command line makes of a preset on gray images."""
  ranges = preset(name).value_range
  colours = ranges is not None and len(ranges.mean) > 1
  own = ['--value-range', 'own'] if colours else []
  return split_digits.experiment(**flags('--preset', name, *own, *args))


def arguments(settings):
  """Arguments by the name of the factory, of all that settings hold."""
  found = {}
  if isinstance(settings, dict):
    if 'name' in settings:
      found[settings['name']] = settings
    for value in settings.values():
      found |= arguments(value)
  return found


@every_preset
def test_what_is_applied_is_what_is_recorded(name):
  found, made = preset(name), run_of(name)
  training, views = made.training, found.views
  assert (training.epochs, training.batch_size) == (found.epochs, found.batch_size)
  if found.recipe is not None:  # With its schedule, decay, and rates of groups.
    assert training.recipe.settings == found.values['recipe']
  images = found.value_range is not None
  wanted = (views and views(16)) if images else random_crop(1)
  assert settings_of(training.augment) == settings_of(wanted)
  if images and len(found.value_range.mean) == 1:
    inputs = made.backbone.inputs
    assert inputs.mean == found.value_range.mean and inputs.std == found.value_range.std
  parts = arguments(made.method.settings)
  assert found.method in parts and set(found.wrap) <= set(parts)
  for part, options in found.options.items():
    for option, value in options.items():
      assert parts[part][option] == value, (part, option)


@every_preset
def test_every_value_stands_in_one_place(name):
  found = preset(name)
  assert all(found.stands(value) for value in found.values)
  for names in found.where.values():
    for each in names:  # No place names a value that is not there.
      assert any(v == each or v.startswith(f'{each}.') for v in found.values), each
  assert ' at ' in found.source  # A repository at a commit.


@every_preset
def test_every_option_is_one_of_a_part_in_use(name):
  found = preset(name)
  transform = choose(found.method, peft=found.peft).transform
  kinds = {found.method: 'method', **dict.fromkeys(found.wrap, 'wrapper')}
  kinds |= {} if transform is None else {transform: 'transform'}
  for part, values in found.options.items():
    assert set(values) <= set(options_of(find(kinds[part], part))), part


def test_methods_and_wrappers_have_a_preset():
  known = {part for found in presets().values() for part in (found.method, *found.wrap)}
  # Bounds have the recipe of what they are compared with; EMR merges models as they come; of both
  # methods called C-LoRA no code of the authors was found.
  bounds = {'joint', 'language_model', 'masked_probe', 'single_task'}
  assert {*METHODS, *WRAPPERS} - known == {'emr', 'clora', 'routed_lora'} | bounds


def test_an_unknown_preset_suggests_the_nearest():
  with pytest.raises(ValueError, match="unknown preset 'l2p@pilt'; did you mean 'l2p@pilot'"):
    preset('l2p@pilt')


def test_flags_go_before_a_preset():
  args = ['--epochs', '1', '--learning-rate', '0.5', '--set', 'l2p.length=3']
  made = run_of('l2p@pilot', *args, '--views', 'own', '--value-range', 'own')
  assert (made.training.epochs, made.training.batch_size) == (1, 16)
  assert made.training.recipe.settings['learning_rate'] == 0.5
  assert (made.method.settings['length'], made.method.settings['pool']) == (3, 10)
  assert made.training.augment.settings['name'] == 'random_crop'
  assert made.backbone.inputs == pretrained('vit_glyphs16').backbone.inputs


def test_the_delta_of_slca_has_a_rate_of_its_own():
  settings = run_of('slca@slca').training.recipe.settings
  assert (settings['factor'], settings['learning_rate']) == (0.01, 0.01)
  # The delta's rate counts where it is trained: of the same gradient it moves a hundredth.
  recipe, ones = preset('slca@slca').recipe(0.01), jnp.ones(1)
  params = {'delta': ones, 'head': ones}
  moved, _ = recipe.tx.update(params, recipe.tx.init(params), params, progress=jnp.zeros(()))
  assert moved['delta'] == pytest.approx(0.01 * moved['head'])


def test_what_was_not_read_at_the_source_says_so():
  found = preset('l2p@l2p')
  vague = found._replace(where={**found.where, 'README.md': (), UNVERIFIED: ('model',)})
  assert vague.as_json()['values']['model']['where'] == 'unverified'
  with pytest.raises(ValueError, match=r'model stands in \[\], expected one place'):
    found._replace(where={**found.where, 'README.md': ()}).stands('model')


def test_a_source_of_views_or_values_needs_a_preset():
  for flag in ('--views', '--value-range'):
    with pytest.raises(ValueError, match=f'{flag} source is that of a preset'):
      split_digits.experiment(**flags(flag, 'source'))


def test_a_value_range_of_colours_is_refused_for_gray_images():
  with pytest.raises(ValueError, match=r'3 channels, the backbone reads 1: .*--value-range own'):
    split_digits.experiment(**flags('--preset', 'slca@slca'))
  assert UNIT_RANGE.of(3)['std'] == (1.0, 1.0, 1.0)


def test_the_decay_is_part_of_what_momentum_adds_up():
  torch = pytest.importorskip('torch')
  for nesterov in (False, True):
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    theirs = torch.optim.SGD([w], 0.1, momentum=0.9, weight_decay=0.5, nesterov=nesterov)
    ours = sgd_with_l2(0.1, weight_decay=0.5, nesterov=nesterov, schedule=jnp.ones_like)
    params = jnp.asarray([1.0, -2.0])
    state = ours.tx.init(params)
    for _ in range(3):
      w.grad = 2 * w.detach()
      theirs.step()
      updates, state = ours.tx.update(2 * params, state, params, progress=jnp.zeros(()))
      params = optax.apply_updates(params, updates)
    assert params == pytest.approx(w.detach().numpy(), abs=1e-6)
