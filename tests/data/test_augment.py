import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pecft_jax.data import (
  brightness,
  compose,
  horizontal_flip,
  random_crop,
  random_resized_crop,
)
from pecft_jax.data.counter import uniforms

ALL = {
  'crop': random_crop(2),
  'flip': horizontal_flip(),
  'brightness': brightness(0.4),
  'resized': random_resized_crop(scale=(0.1, 1.0)),
  'bigger': random_resized_crop(9),
  'composed': compose(random_crop(1), horizontal_flip()),
  'nothing': compose(),
}


def images(n=6, channels=3):
  return np.random.default_rng(n).integers(0, 256, (n, 6, 5, channels), np.uint8)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('channels', [1, 3])
def test_each_image_depends_on_its_own_numbers(name, channels):
  augment, x = ALL[name], images(channels=channels)
  before = x.copy()
  u = uniforms(0, np.arange(6), augment.uniforms)
  out = augment.apply(x, u)
  assert out.dtype == np.uint8
  one_by_one = [augment.apply(x[i : i + 1], u[i : i + 1]) for i in range(6)]
  np.testing.assert_array_equal(out, np.concatenate(one_by_one))
  np.testing.assert_array_equal(x, before)


def test_flip_mirrors_where_the_number_is_small():
  x = images(2)
  out = horizontal_flip().apply(x, np.array([[0.49], [0.5]], np.float32))
  np.testing.assert_array_equal(out[0], x[0, :, ::-1])
  np.testing.assert_array_equal(out[1], x[1])


@given(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_crop_is_a_shift_with_black_margins(padding, top, left):
  top, left = min(top, 2 * padding), min(left, 2 * padding)
  x = images(1)
  u = (np.array([[top, left]], np.float32) + 0.5) / (2 * padding + 1)
  padded = np.zeros((6 + 2 * padding, 5 + 2 * padding, 3), np.uint8)
  padded[padding : padding + 6, padding : padding + 5] = x[0]
  out = random_crop(padding).apply(x, u)
  np.testing.assert_array_equal(out[0], padded[top : top + 6, left : left + 5])


def test_crop_reaches_every_offset_equally_often():
  x = np.zeros((9000, 3, 3, 1), np.uint8)
  x[:, 1, 1] = 1
  out = random_crop(1).apply(x, uniforms(5, np.arange(9000), 2))
  counts = out[..., 0].reshape(9000, 9).sum(0, dtype=int)
  assert np.abs(counts - 1000).max() < 150


def test_resized_crop_of_the_whole_image_changes_nothing():
  x = images(3)[:, :5]
  out = random_resized_crop(scale=(1, 1), ratio=(1, 1)).apply(x, np.zeros((3, 4), np.float32))
  np.testing.assert_array_equal(out, x)


def test_resized_crop_shows_a_part_of_the_image():
  # Brightness grows to the right, so a part spans a smaller range.
  x = np.broadcast_to(np.arange(0, 240, 8, dtype=np.uint8)[None, None, :, None], (50, 30, 30, 1))
  out = random_resized_crop(scale=(0.04, 0.25), ratio=(1, 1)).apply(
    x, uniforms(0, np.arange(50), 4)
  )
  spans = np.ptp(out.astype(int), axis=(1, 2, 3))
  assert out.shape == x.shape
  assert (spans <= 240 * 0.5).all() and (spans >= 240 * 0.12).all()


def test_composed_numbers_are_dealt_in_order():
  x, u = images(4), uniforms(1, np.arange(4), 3)
  expected = horizontal_flip().apply(random_crop(2).apply(x, u[:, :2]), u[:, 2:])
  both = compose(random_crop(2), horizontal_flip())
  assert both.uniforms == 3
  np.testing.assert_array_equal(both.apply(x, u), expected)


def test_impossible_ranges_are_refused():
  with pytest.raises(ValueError, match='got -1'):
    random_crop(-1)
  with pytest.raises(ValueError, match='scale up to 1'):
    random_resized_crop(scale=(0.5, 2))


def test_brightness_is_that_of_pil():
  enhance, image = pytest.importorskip('PIL.ImageEnhance'), pytest.importorskip('PIL.Image')
  x, u = images(5), np.float32([[0.0], [0.3], [0.5], [0.9], [0.99]])
  out = brightness(0.5).apply(x, u)
  for i, factor in enumerate(0.5 + u[:, 0]):
    theirs = enhance.Brightness(image.fromarray(x[i])).enhance(float(factor))
    np.testing.assert_array_equal(out[i], np.asarray(theirs))
  with pytest.raises(ValueError, match=r'amount in \[0, 1\], got 2'):
    brightness(2)
