"""A source over a prepared TensorFlow Datasets set, without TensorFlow.

`tfds` reads array_record files at any row and leaves TensorFlow alone as long
as images are decoded here. Only preparing a data set may need it.
"""

import dataclasses
import io
from typing import Any

import numpy as np

from pecft_jax.data.resizing import centre_square
from pecft_jax.data.source import Source


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
    images = [self._decode(record[self.key]) for record in records]
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
      raise ValueError(f'expected images of one size, got {shapes}; give tfds_source an image_size')
    return np.stack(images)

  def _decode(self, data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as file:
      picture = file.convert(self.mode)
    if self.size is not None:
      return centre_square(picture, self.size)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


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
  """
  import tensorflow_datasets as tfds

  builder = _prepared(tfds, name, data_dir)
  features = dict(builder.info.features)
  for key, kind in ((image_key, tfds.features.Image), (label_key, tfds.features.ClassLabel)):
    if not isinstance(features.get(key), kind):
      raise ValueError(
        f'{name!r}: expected a feature {key!r} of type {kind.__name__}; features: {features}'
      )
  records = builder.as_data_source(
    split, decoders={image_key: tfds.decode.SkipDecoding()}, file_format='array_record'
  )
  mode = 'L' if features[image_key].shape[-1] == 1 else 'RGB'
  return Source(
    name=name,
    inputs=_Encoded(records, image_key, mode, image_size),
    labels=np.array([record[label_key] for record in records], np.int64),
    class_names=tuple(features[label_key].names),
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
