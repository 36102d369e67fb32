"""The parts of a preset that an experiment uses, where its flags ask for them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pecft_jax.data import Augmentation
from pecft_jax.presets.record import Preset
from pecft_jax.recipes import Recipe, lora_plus, with_rates

Whose = Literal['own', 'source']


def value_range_of(published: Preset | None, whose: Whose, channels: int) -> dict[str, Any]:
  """Options of a backbone's factory for the value range; none for its own.

  Args:
    published: the preset in use, or None.
    whose: the backbone's own, or that of the preset's source.
    channels: that the backbone reads.

  Raises:
    ValueError: for `whose='source'` without a preset, or with one that has no images or another
      number of channels.

  >>> from pecft_jax.presets import preset
  >>> value_range_of(preset('l2p@pilot'), 'source', channels=1)
  {'mean': (0.0,), 'std': (1.0,)}
  """
  if whose == 'own':
    return {}
  found = _asked(published, '--value-range').value_range
  assert found is not None
  return found.of(channels)


def views_of(
  published: Preset | None, whose: Whose, side: int, own: Augmentation | None
) -> Augmentation | None:
  """The augmentation of training images; None for none.

  Args:
    published: the preset in use, or None.
    whose: the experiment's own, or those of the preset's source.
    side: of the images, in pixels.
    own: the experiment's.

  Raises:
    ValueError: for `whose='source'` without a preset, or with one that has no images.

  >>> views_of(None, 'own', 32, None) is None
  True
  """
  if whose == 'own':
    return own
  views = _asked(published, '--views').views
  return None if views is None else views(side)


def recipe_of(
  published: Preset | None,
  learning_rate: float | None,
  own: Callable[[float], Recipe],
  own_rate: float,
  rates: Sequence[str] = (),
  plus: float | None = None,
) -> Recipe:
  """The preset's optimizer, or the experiment's own without a preset or where it trains nothing.

  Args:
    published: the preset in use, or None.
    learning_rate: the peak rate of the flag; None for that of the recipe in use.
    own: peak rate -> the experiment's own recipe.
    own_rate: its peak rate.
    rates: peak rates of groups of parameters, as PATTERN=RATE: `^delta=1e-4`; see `with_rates`.
    plus: the ratio of `lora_plus`; None for one rate of both factors.

  Raises:
    ValueError: for rates of another form, as `with_rates` and `lora_plus`, or for both.

  >>> from pecft_jax.recipes import sgd
  >>> recipe_of(None, None, sgd, 0.1).settings['learning_rate']
  0.1
  """
  make, rate = own, own_rate
  if published is not None and published.recipe and published.learning_rate is not None:
    make, rate = published.recipe, published.learning_rate
  rate = rate if learning_rate is None else learning_rate
  if plus is not None and rates:
    raise ValueError(
      "--lora-plus and --rates do not go together: give the rate of B to --rates, as in '/b$=1e-3'"
    )
  if plus is not None:
    return lora_plus(make(rate), plus)
  return with_rates(make(rate), rate, _rates(rates)) if rates else make(rate)


def _rates(texts: Sequence[str]) -> dict[str, float]:
  found: dict[str, float] = {}
  for text in texts:
    pattern, equals, value = text.rpartition('=')
    try:
      rate = float(value)
    except ValueError:
      rate = -1.0
    if not equals or not pattern or not 0 <= rate < float('inf'):
      raise ValueError(f"--rates takes PATTERN=RATE, as in '^delta=1e-4', got {text!r}")
    if pattern in found:
      raise ValueError(f'--rates has two rates of {pattern!r}')
    found[pattern] = rate
  return found


def _asked(published: Preset | None, flag: str) -> Preset:
  if published is None:
    raise ValueError(
      f'{flag} source is that of a preset, and none is named: add --preset NAME@SOURCE'
    )
  if published.value_range is None:
    raise ValueError(
      f'{flag} source is of images, and {published.source} has {published.data}: use {flag} own'
    )
  return published
