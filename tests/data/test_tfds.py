import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pecft_jax.data import tfds_source
from pecft_jax.data.tfds import _Encoded, check_convertible


class ToyPictures(tfds.core.GeneratorBasedBuilder):
  """Six training and four test images, filled with ten times their label."""

  VERSION = tfds.core.Version('1.0.0')
  SIZES = ((8, 8),)

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
        'number': np.int64,
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples(6), 'test': self._generate_examples(4)}

  def _generate_examples(self, count):
    for i in range(count):
      height, width = self.SIZES[i % len(self.SIZES)]
      pixels = np.full((height, width, 3), 10 * (i % 3), np.uint8)
      # As a Pillow image: tfds needs TensorFlow to encode an array.
      yield i, {'image': Image.fromarray(pixels), 'label': i % 3, 'number': i}


class MixedPictures(ToyPictures):
  """Images of different sizes."""

  SIZES = ((8, 8), (8, 12), (10, 8))


class _OtherPictures(ToyPictures):
  """Pictures of some other kind, two of them."""

  FEATURE = tfds.features.Image(shape=(8, 8, 3))
  PICTURE = np.zeros((8, 8, 3), np.uint8)
  pkg_dir_path = None

  def _info(self):
    features = {'image': self.FEATURE, 'label': tfds.features.ClassLabel(names=['a', 'b'])}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _generate_examples(self, count):
    for i in range(2):
      file = io.BytesIO()
      Image.fromarray(self.PICTURE).save(file, 'PNG')
      yield i, {'image': file, 'label': self.LABELS[i]}

  LABELS = (0, 1)


RAMP = (np.arange(64).reshape(8, 8) * 1024).astype(np.uint16)


class DeepPictures(_OtherPictures):
  """Grey with 16 bits, as radiologists have them."""

  FEATURE = tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format='png')
  PICTURE = RAMP


class ClearPictures(_OtherPictures):
  """Four channels."""

  FEATURE = tfds.features.Image(shape=(8, 8, 4), encoding_format='png')
  PICTURE = np.zeros((8, 8, 4), np.uint8)


class UnlabelledPictures(_OtherPictures):
  """A test set whose labels are kept back."""

  LABELS = (-1, -1)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('tfds'))
  tfds.disable_progress_bar()
  for builder in (ToyPictures, MixedPictures, DeepPictures, ClearPictures, UnlabelledPictures):
    builder(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_rows_are_read_in_any_order_without_tensorflow(data_dir):
  before = 'tensorflow' in sys.modules
  source = tfds_source('toy_pictures', 'train', data_dir)
  rows = np.array([4, 0, 5, 4])
  images = source.inputs[rows]
  assert images.shape == (4, 8, 8, 3)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(images[:, 0, 0, 0], 10 * source.labels[rows])
  assert ('tensorflow' in sys.modules) == before


def test_labels_and_names_come_from_the_data_set(data_dir):
  source = tfds_source('toy_pictures', 'test', data_dir)
  assert source.class_names == ('a', 'b', 'c')
  assert sorted(source.labels.tolist()) == [0, 0, 1, 2]
  assert source.labels.dtype == np.int64


def test_parts_of_a_split_can_be_asked_for(data_dir):
  assert len(tfds_source('toy_pictures:1.0.0', 'train[:50%]', data_dir).inputs) == 3


def test_images_of_different_sizes_need_an_image_size(data_dir):
  rows = np.arange(4)
  with pytest.raises(ValueError, match=r'expected images of one size.*image_size'):
    _ = tfds_source('mixed_pictures', 'test', data_dir).inputs[rows]
  source = tfds_source('mixed_pictures', 'test', data_dir, image_size=6)
  assert source.inputs[rows].shape == (4, 6, 6, 3)


def test_a_data_set_that_is_not_prepared_says_how_to(tmp_path):
  with pytest.raises(ValueError, match=r'not prepared.*tfds build toy_pictures --file_format'):
    tfds_source('toy_pictures', 'train', str(tmp_path))


def test_an_unknown_data_set_is_named(tmp_path):
  with pytest.raises(ValueError, match="knows no data set 'no_such_pictures'"):
    tfds_source('no_such_pictures', 'train', str(tmp_path))


def test_wrong_features_are_listed(data_dir):
  with pytest.raises(ValueError, match=r"feature 'number' of type ClassLabel; features: .*'label'"):
    tfds_source('toy_pictures', 'train', data_dir, label_key='number')
  with pytest.raises(ValueError, match="feature 'picture' of type Image"):
    tfds_source('toy_pictures', 'train', data_dir, image_key='picture')


def test_importing_the_library_does_not_import_tfds():
  code = 'import sys, pecft_jax.data; assert "tensorflow_datasets" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('deep_pictures', 'images of uint8 with 1 or 3 channels, got uint16 with 1; convert them'),
    ('clear_pictures', 'got uint8 with 4; convert them'),
    ('unlabelled_pictures', r'expected labels in 0..1, got \[-1\]'),
  ],
)
def test_data_that_would_be_read_as_something_else_are_refused(data_dir, name, message):
  with pytest.raises(ValueError, match=message):
    tfds_source(name, 'train', data_dir)


class _Records(list):
  """What tfds gives: records by their rows."""

  def __getitems__(self, rows):
    return [self[row] for row in rows]


def test_an_image_that_cannot_be_decoded_is_named():
  records = _Records([{'picture': b'none'}, {'picture': b''}])
  with pytest.raises(ValueError, match='image 1 cannot be read as an image: its format is unknown'):
    _Encoded(records, 'picture', 'RGB', None)[np.array([1, 0])]


def _see_through(mode='RGBA', alpha=0):
  picture = Image.new('RGBA', (4, 4), (200, 0, 0, 255))
  picture.putpixel((1, 2), (200, 0, 0, alpha))
  return picture.convert(mode)


@pytest.mark.parametrize(
  ('picture', 'mode', 'message'),
  [
    (Image.fromarray(RAMP), 'L', "expected 8 bits a channel, got mode 'I;16'"),
    (Image.new('F', (4, 4)), 'RGB', "got mode 'F'"),
    (_see_through(), 'RGB', r"is transparent in places \(mode 'RGBA'\)"),
    (_see_through('LA'), 'L', 'is transparent in places'),
    (_see_through('P'), 'RGB', 'is transparent in places'),
    (Image.new('RGB', (4, 4)), 'L', "expected a grey image, got mode 'RGB'"),
  ],
)
def test_an_image_that_would_lose_something_is_refused(picture, mode, message):
  with pytest.raises(ValueError, match=f'image 7.*{message}'):
    check_convertible('image 7:', picture, mode)


@pytest.mark.parametrize(
  ('picture', 'mode'),
  [
    (Image.new('L', (4, 4)), 'RGB'),
    (Image.new('1', (4, 4)), 'L'),
    (_see_through(alpha=255), 'RGB'),
    (Image.new('P', (4, 4)), 'RGB'),
    (Image.new('CMYK', (4, 4)), 'RGB'),
  ],
)
def test_other_images_keep_their_meaning(picture, mode):
  check_convertible('image 7', picture, mode)
