import pytest

from pecft_jax.presets import preset, recipe_of, value_range_of, views_of
from pecft_jax.recipes import adam, sgd

PUBLISHED = preset('l2p@pilot')


def test_a_rate_that_is_given_goes_before_that_of_the_source():
  assert recipe_of(PUBLISHED, 0.5, adam, 1.0).settings['learning_rate'] == 0.5
  assert recipe_of(PUBLISHED, None, adam, 1.0).settings['learning_rate'] == PUBLISHED.learning_rate
  assert recipe_of(None, None, adam, 1.0).settings['learning_rate'] == 1.0


def test_a_rate_of_zero_is_refused_and_not_replaced_by_another():
  with pytest.raises(ValueError, match='learning_rate must be positive, got 0'):
    recipe_of(PUBLISHED, 0.0, adam, 1.0)


def test_own_views_and_values_stay_beside_a_preset():
  assert views_of(PUBLISHED, 'own', 32, None) is None
  assert value_range_of(PUBLISHED, 'own', channels=3) == {}
  assert views_of(PUBLISHED, 'source', 32, None) is not None


def test_views_of_no_preset_are_refused_with_the_remedy():
  with pytest.raises(ValueError, match='none is named: add --preset NAME@SOURCE'):
    views_of(None, 'source', 32, None)


def test_groups_have_the_rates_of_the_flag():
  made = recipe_of(None, 1e-4, sgd, 0.1, ('head=1e-2',))
  assert made.factors == (('head', pytest.approx(100)),)
  for wrong in ('head', 'head=much', '=1', 'head=-1', 'head=inf'):
    with pytest.raises(ValueError, match='PATTERN=RATE'):
      recipe_of(None, None, sgd, 0.1, (wrong,))
  with pytest.raises(ValueError, match='groups of its own'):
    recipe_of(preset('slca@slca'), None, sgd, 0.1, ('head=1e-2',))


def test_factors_b_have_the_ratio_of_the_flag():
  assert recipe_of(None, None, sgd, 0.1, plus=16.0).factors == (('(^|/)b$', 16.0),)
  with pytest.raises(ValueError, match='do not go together'):
    recipe_of(None, None, sgd, 0.1, ('head=1e-2',), 16.0)
