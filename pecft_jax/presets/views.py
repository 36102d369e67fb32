"""Views of training images that several sources use, as functions of the side of the images."""

from pecft_jax.data import (
  Augmentation,
  brightness,
  compose,
  horizontal_flip,
  random_crop,
  random_resized_crop,
)


def parts_from_a_twentieth(side: int) -> Augmentation:
  """A random resized crop of 5 % to 100 % of the area, and flips.

  >>> parts_from_a_twentieth(224).uniforms
  5
  """
  del side
  return compose(random_resized_crop(scale=(0.05, 1.0)), horizontal_flip())


def parts(side: int) -> Augmentation:
  """A random resized crop of 8 % to 100 % of the area, and flips: torchvision's defaults.

  >>> parts(224).uniforms
  5
  """
  del side
  return compose(random_resized_crop(), horizontal_flip())


def most_of_it(side: int) -> Augmentation:
  """A random resized crop of 90 % to 100 % of the area, without flips.

  >>> most_of_it(224).uniforms
  4
  """
  del side
  return random_resized_crop(scale=(0.9, 1.0))


def parts_and_brightness(side: int) -> Augmentation:
  """As `parts`, and the brightness changes by up to 63 / 255.

  >>> parts_and_brightness(224).uniforms
  6
  """
  return compose(parts(side), brightness(63 / 255))


def shifts(side: int) -> Augmentation:
  """Shifts by up to an eighth of the side, and flips: 4 pixels of 32.

  >>> shifts(32).uniforms
  3
  """
  return compose(random_crop(side // 8), horizontal_flip())


def shifts_and_brightness(side: int) -> Augmentation:
  """As `shifts`, and the brightness changes by up to 63 / 255.

  >>> shifts_and_brightness(32).uniforms
  4
  """
  return compose(shifts(side), brightness(63 / 255))


def flips(side: int) -> Augmentation:
  """Flips alone.

  >>> flips(224).uniforms
  1
  """
  del side
  return horizontal_flip()
