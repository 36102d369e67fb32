"""A source over a prepared TensorFlow Datasets set, without TensorFlow.

`tfds` reads array_record files at any row, and imports no TensorFlow as long as images are decoded
here. Only preparing a data set may need it.
"""

import dataclasses
import io
from typing import Any

import numpy as np

from pecft_jax.data.in_arrays import indices
from pecft_jax.data.pictures import loaded, opened
from pecft_jax.data.resizing import centre_square
from pecft_jax.data.source import Source

# Pillow's modes with 8 bits a channel or less.
_EIGHT_BITS = {'1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'LAB', 'HSV'}


@dataclasses.dataclass(frozen=True, repr=False)
class _Encoded:
  """Random access to encoded images, which it decodes."""

  records: Any  # A tfds data source whose images are bytes.
  key: str
  mode: str  # Pillow's: 'L' or 'RGB'.
  size: int | None

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    records = self.records.__getitems__(np.asarray(rows).tolist())
    images = [
      self._decode(int(row), record[self.key]) for row, record in zip(rows, records, strict=True)
    ]
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
      raise ValueError(f'expected images of one size, got {shapes}; give tfds_source an image_size')
    return np.stack(images)

  def _decode(self, row: int, data: bytes) -> np.ndarray:
    read = opened(f'image {row}', io.BytesIO(data), loaded)
    check_convertible(f'image {row}', read, self.mode)
    picture = read.convert(self.mode)
    if self.size is not None:
      return centre_square(picture, self.size)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def check_convertible(name: str, picture: Any, mode: str) -> None:
  """Checks that an image keeps its meaning in the mode that it is converted to.

  Args:
    name: of the image, for messages.
    picture: a Pillow image, as decoded.
    mode: Pillow's: 'L' or 'RGB'.

  Raises:
    ValueError: for more than 8 bits a channel, transparency, or colours that would become grey.
  """
  if picture.mode not in _EIGHT_BITS:
    raise ValueError(
      f'{name}: expected 8 bits a channel, got mode {picture.mode!r}, which would be '
      'truncated; scale the images to uint8 when the data set is prepared'
    )
  if picture.has_transparency_data and picture.convert('RGBA').getextrema()[3][0] < 255:
    raise ValueError(
      f'{name} is transparent in places (mode {picture.mode!r}): put the images on a background '
      'when the data set is prepared'
    )
  if mode == 'L' and picture.mode not in {'1', 'L', 'LA'}:
    raise ValueError(f'{name}: expected a grey image, got mode {picture.mode!r}')


def tfds_source(
  name: str,
  split: str,
  data_dir: str | None = None,
  *,
  image_size: int | None = None,
  image_key: str = 'image',
  label_key: str = 'label',
) -> Source:
  """Opens a split of a data set that `tfds` has prepared as array_record.

  Images are decoded when they are asked for; labels are read once, here.

  Args:
    name: as for `tfds.builder`: `'cifar100'`, `'imagenet_r:0.2.0'`.
    split: as for tfds: `'train'`, `'test[:80%]'`.
    data_dir: where tfds keeps its data; None is its default.
    image_size: scales the centre square of each image to this side; needed
      where images differ in size.
    image_key: name of the image feature.
    label_key: name of the label feature.

  Raises:
    ValueError: if the data set is not prepared, has no such features, its images
      have more than 8 bits or an alpha channel, or a row has no label. Images
      that would lose something are refused when they are read.

  >>> tfds_source('mnist', 'train', data_dir='no_data_here')
  Traceback (most recent call last):
  ValueError: 'mnist' is not prepared in ...
  """
  import tensorflow_datasets as tfds

  builder = _prepared(tfds, name, data_dir)
  features = dict(builder.info.features)
  for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
    if not isinstance(features.get(key), kind):
      raise ValueError(
        f'{name!r}: expected a feature {key!r} of type {kind.__name__}; features: {features}'
      )
  image = features[image_key]
  dtype, channels = np.dtype(image.np_dtype), image.shape[-1]
  if dtype != np.uint8 or channels not in {1, 3, None}:
    raise ValueError(
      f'{name!r}: expected images of uint8 with 1 or 3 channels, got {dtype} with {channels}; '
      'convert them when the data set is prepared'
    )
  records = builder.as_data_source(
    split, decoders={image_key: tfds.decode.SkipDecoding()}, file_format='array_record'
  )
  mode = 'L' if image.shape[-1] == 1 else 'RGB'
  # Test sets without labels have -1 in their place.
  labels, class_names = indices(
    name, 'label', [record[label_key] for record in records], features[label_key].names,
    len(records),
  )  # fmt: skip
  return Source(
    name=name,
    inputs=_Encoded(records, image_key, mode, image_size),
    labels=labels,
    class_names=class_names,
  )


def _prepared(tfds: Any, name: str, data_dir: str | None) -> Any:
  """The builder of a data set that is on disk as array_record."""
  advice = (
    f'prepare it once with `tfds build {name} --file_format=array_record`'
    + (f' --data_dir={data_dir}' if data_dir else '')
    + ' (some data sets need TensorFlow for that)'
  )
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    where = data_dir or 'the default data_dir'
    raise ValueError(f'tfds knows no data set {name!r}, and {where} holds none') from error
  if not builder.is_prepared():
    raise ValueError(f'{name!r} is not prepared in {builder.data_dir}; {advice}')
  if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
    raise ValueError(
      f'{name!r} is prepared in {builder.data_dir} as {builder.info.file_format.value}, '
      f'expected array_record; {advice}, in another data_dir'
    )
  return builder
