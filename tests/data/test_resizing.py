import numpy as np
import pytest

from pecft_jax.data import arrays, check_inputs, resize
from pecft_jax.data.resizing import centre_square


def source(shape, fill=7):
  return arrays('toy', np.full((3, *shape), fill, np.uint8), [0, 1, 2])


def test_resized_images_have_the_new_size():
  resized = resize(source((4, 4, 3)), 6)
  check_inputs(resized, (6, 6, 3))
  assert (resized.inputs[np.array([0, 2])] == 7).all()
  assert len(resized.inputs) == 3


def test_grey_images_can_become_colour_images():
  images = resize(source((4, 4, 1)), 4, channels=3).inputs[np.arange(3)]
  assert images.shape == (3, 4, 4, 3)
  assert (images == 7).all()


def test_same_size_changes_no_pixel():
  image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
  np.testing.assert_array_equal(centre_square(image, 5), image)


def test_oblong_images_lose_their_margins():
  image = np.zeros((2, 6, 1), np.uint8)
  image[:, 2:4] = 200
  assert (centre_square(image, 4) >= 100).all()
  assert (centre_square(image, 2) == 200).all()


def test_shrinking_averages():
  checkers = (np.indices((8, 8)).sum(0) % 2 * 254).astype(np.uint8)[..., None]
  assert abs(int(centre_square(checkers, 2).mean()) - 127) <= 2


@pytest.mark.parametrize(
  ('shape', 'size', 'channels', 'message'),
  [
    ((4, 4, 2), 4, None, r'1 or 3\], got \(4, 4, 2\)'),
    ((4, 4, 3), 4, 1, 'got 3 to 1'),
    ((4, 4, 3), 0, None, 'got 0'),
  ],
)
def test_impossible_conversions_are_refused(shape, size, channels, message):
  with pytest.raises(ValueError, match=message):
    resize(source(shape), size, channels)
