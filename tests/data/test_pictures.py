import numpy as np
import pytest
from PIL import Image

from pecft_jax import data
from pecft_jax.data.pictures import ImageFiles, decoded, image_inputs, kind_of


def _pixels(height=12, width=17, channels=3, seed=0):
  shape = (height, width) if channels == 1 else (height, width, channels)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def save(tmp_path):
  def saved(picture, name='a.png', **options):
    if isinstance(picture, np.ndarray):
      picture = Image.fromarray(picture)
    picture.save(tmp_path / name, **options)
    return tmp_path / name

  return saved


@pytest.mark.parametrize(('height', 'width', 'size'), [(12, 17, 8), (17, 12, 8), (5, 5, 9)])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_file_gives_the_bytes_of_the_same_image_in_an_array(save, height, width, size, channels):
  pixels = _pixels(height, width, channels)
  array = data.arrays('a', pixels.reshape(1, height, width, channels), [0])
  expected = data.resize(array, size).inputs[np.arange(1)][0]
  np.testing.assert_array_equal(decoded(save(pixels), size, channels), expected)


def test_an_image_is_turned_as_its_orientation_says(save):
  pixels = _pixels(8, 8)
  turned = {3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
  for orientation, expected in turned.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decoded(save(pixels, exif=exif), 8, 3), expected)


def _rgba():
  pixels = _pixels(8, 8, 4)
  pixels[..., 3] = 255
  pixels[2, 3] = (200, 0, 0, 0)
  pixels[2, 4] = (200, 0, 0, 51)
  return pixels


def test_what_is_transparent_becomes_white(save):
  pixels = _rgba()
  found = decoded(save(pixels), 8, 3, convert=True)
  opaque = pixels[..., 3] == 255
  np.testing.assert_array_equal(found[opaque], pixels[opaque][:, :3])
  assert found[2, 3].tolist() == [255, 255, 255]
  # A fifth of the colour on four fifths of white.
  assert found[2, 4].tolist() == [244, 204, 204]


def test_sixteen_bits_keep_their_upper_eight(save):
  deep = np.random.default_rng(0).integers(0, 2**16, (8, 8), np.uint16)
  for channels in (1, 3):
    found = decoded(save(deep), 8, channels, convert=True)
    np.testing.assert_array_equal(found, np.repeat((deep >> 8)[..., None], channels, 2))


def test_grey_is_repeated_and_colours_become_their_luma(save):
  grey, colours = _pixels(8, 8, 1), _pixels(8, 8)
  found = decoded(save(grey), 8, 3, convert=True)
  np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, 2))
  found = decoded(save(colours), 8, 1, convert=True)[..., 0]
  # Pillow's weights have 16 bits.
  luma = colours @ np.array([0.299, 0.587, 0.114])
  assert np.abs(found - luma).max() <= 0.51


def test_a_palette_is_looked_up(save):
  picture = Image.fromarray(_pixels(8, 8)).quantize(16)
  expected = np.asarray(picture.getpalette()).reshape(-1, 3)[np.asarray(picture)]
  np.testing.assert_array_equal(decoded(save(picture), 8, 3, convert=True), expected)


@pytest.mark.parametrize(
  ('picture', 'channels', 'name', 'message'),
  [
    (Image.new('L', (8, 8)), 3, 'a.png', r'is L; .* grey is repeated over the channels'),
    (Image.new('RGB', (8, 8)), 1, 'a.png', r'expected grey .* is RGB; .* colours become grey'),
    (Image.fromarray(_rgba()), 3, 'a.png', r'is RGBA with transparency; .*become white \(RGBA'),
    (Image.new('P', (8, 8)), 3, 'a.png', r'is P; convert=True takes them: colours become RGB'),
    (Image.new('CMYK', (8, 8)), 3, 'a.tif', r'is CMYK; convert=True takes them: colours become'),
    (Image.new('I;16', (8, 8)), 1, 'a.png', r'is I;16 of 16 bits; .* the upper 8 bits are kept'),
    (Image.new('1', (8, 8)), 1, 'a.png', r'is 1; convert=True takes them: bits become 0 and 255'),
  ],
)
def test_another_mode_is_refused_with_its_remedy(save, picture, channels, name, message):
  path = save(picture, name)
  with pytest.raises(ValueError, match=message) as caught:
    decoded(path, 8, channels)
  assert str(path) in str(caught.value)
  assert decoded(path, 8, channels, convert=True).shape == (8, 8, channels)


def test_colours_of_sixteen_bits_are_not_cut_silently(tmp_path):
  # Pillow writes none: a PNG of one pixel, by hand.
  import struct
  import zlib

  def chunk(kind, payload):
    checked = kind + payload
    return struct.pack('>I', len(payload)) + checked + struct.pack('>I', zlib.crc32(checked))

  header = struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0)
  pixel = zlib.compress(b'\0' + struct.pack('>HHH', 0x1234, 0x5678, 0x9ABC))
  parts = chunk(b'IHDR', header) + chunk(b'IDAT', pixel) + chunk(b'IEND', b'')
  path = tmp_path / 'deep.png'
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + parts)
  assert kind_of(path) == 'RGB of 16 bits'
  with pytest.raises(ValueError, match=r'deep.png is RGB of 16 bits'):
    decoded(path, 1, 3)
  assert decoded(path, 1, 3, convert=True).tolist() == [[[0x12, 0x56, 0x9A]]]


def test_a_transparent_colour_is_seen(save):
  path = save(Image.new('RGB', (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
  with pytest.raises(ValueError, match='is RGB with transparency'):
    decoded(path, 8, 3)
  assert decoded(path, 8, 3, convert=True).min() == 255


def test_values_without_a_known_meaning_are_refused_whatever_is_asked_for(save):
  path = save(Image.new('F', (8, 8)), 'a.tif')
  for convert in (False, True):
    with pytest.raises(ValueError, match=r'a.tif is F; what values of mode F mean is not known'):
      decoded(path, 8, 1, convert)


def test_all_that_is_refused_is_said_at_once(save):
  paths = [save(_pixels(channels=c, seed=c), f'{i}.png') for i, c in enumerate([3, 1, 4, 1, 3])]
  with pytest.raises(ValueError) as caught:
    image_inputs(paths, 8, 3, convert=False, check=True)
  assert 'got 2 of mode L (' in str(caught.value) and '1.png); 1 of mode RGBA' in str(caught.value)
  files = image_inputs(paths, 8, 3, convert=True, check=True)
  assert files[np.arange(5)].shape == (5, 8, 8, 3)
  assert files.kinds == {'RGB': 2, 'L': 2, 'RGBA with transparency': 1}
  assert files.converted == (
    '2 of mode L: grey is repeated over the channels; '
    '1 of mode RGBA with transparency: transparent parts become white'
  )
  assert image_inputs(paths, 8, 3, convert=True, check=False).converted == ''


@pytest.mark.parametrize('keep', [0, 3, 60, -40])
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp'])
def test_a_file_that_is_not_whole_is_named(save, keep, name):
  path = save(_pixels(40, 40), name)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=rf'{path} cannot be read as an image: '):
    decoded(path, 8, 3)


def test_a_file_that_is_gone_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'gone.png cannot be read as an image: No such file'):
    decoded(tmp_path / 'gone.png', 8, 3)


def test_an_image_of_an_absurd_size_is_refused(save, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
  with pytest.raises(ValueError, match='cannot be read as an image: Image size'):
    decoded(save(_pixels(20, 20)), 8, 3)


def test_rows_are_read_in_any_order_with_or_without_threads(save):
  pixels = [_pixels(8, 8, seed=i) for i in range(12)]
  files = ImageFiles(tuple(save(p, f'{i}.png') for i, p in enumerate(pixels)), 8, 3)
  for rows in ([3, 0, 3], [*range(11, -1, -1), 5, 5], []):
    found = files[np.array(rows, np.int64)]
    assert found.shape == (len(rows), 8, 8, 3) and found.dtype == np.uint8
    for row, image in zip(rows, found, strict=True):
      np.testing.assert_array_equal(image, pixels[row])
  assert len(files) == 12 and repr(files) == 'ImageFiles(12 files, 8 x 8 x 3)'


@pytest.mark.parametrize(('size', 'channels'), [(0, 3), (8, 2), (8, 4)])
def test_sizes_that_images_cannot_have_are_refused(size, channels):
  with pytest.raises(ValueError, match=r'size must be at least 1|expected channels of 1 or 3'):
    ImageFiles((), size, channels)
