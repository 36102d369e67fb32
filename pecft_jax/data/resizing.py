"""Images of one size from images of any: bilinear, centre square."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.source import Source, channels_first, input_shape

if TYPE_CHECKING:
  from PIL.Image import Image


def scale_part(
  image: 'np.ndarray | Image', size: Sequence[int], box: tuple[float, float, float, float]
) -> np.ndarray:
  """Scales a part of an image, with Pillow's bilinear filter.

  The filter averages over the source where it shrinks.

  Args:
    image: uint8 [H, W, 1 or 3], or a Pillow image.
    size: height and width of the result.
    box: left, top, right and bottom of the part, in pixels.

  Returns:
    uint8 [height, width, C].
  """
  from PIL import Image

  if isinstance(image, np.ndarray):
    # Pillow knows no trailing axis of size one.
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  height, width = size
  scaled = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
  return np.asarray(scaled).reshape(height, width, -1)


def centre_square(image: 'np.ndarray | Image', size: int) -> np.ndarray:
  """Scales the centre square of an image to uint8 [size, size, C].

  The same as scaling the shorter side to `size` and cropping the centre.
  """
  if isinstance(image, np.ndarray):
    height, width = image.shape[:2]
  else:
    width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return scale_part(image, (size, size), (left, top, left + side, top + side))


@dataclasses.dataclass(frozen=True, repr=False)
class _Resized:
  """Random access that resizes what it reads."""

  inputs: Any
  size: int
  channels: int

  def __len__(self) -> int:
    return len(self.inputs)

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    images = self.inputs[rows]
    out = np.empty((len(images), self.size, self.size, self.channels), np.uint8)
    for i, image in enumerate(images):
      out[i] = centre_square(image, self.size)  # Repeats a grey channel.
    return out


@checked
def resize(source: Source, size: int, channels: int | None = None) -> Source:
  """The same rows, their images resized when they are read.

  Args:
    source: of images with 1 or 3 channels.
    size: side of the new square images.
    channels: 3 repeats the one channel of grey images; None keeps what there is.

  Raises:
    ValueError: for a size below 1, or channels that cannot be converted.

  >>> from pecft_jax import data
  >>> train, test = data.digits()
  >>> small = data.resize(data.first_per_class(train, 1), 8)
  >>> small.inputs[[0, 1]].shape
  (2, 8, 8, 1)
  """
  if size < 1:
    raise ValueError(f'expected a size of at least 1, got {size}')
  shape = input_shape(source)
  if len(shape) != 3 or shape[-1] not in (1, 3):
    first = len(shape) == 3 and channels_first(shape)
    hint = '; its channels are first: transpose(0, 2, 3, 1) the images' if first else ''
    raise ValueError(f'{source.name!r}: expected images [H, W, 1 or 3], got {shape}{hint}')
  channels = shape[-1] if channels is None else channels
  if (shape[-1], channels) not in ((1, 1), (1, 3), (3, 3)):
    raise ValueError(
      f'{source.name!r}: expected channels to go from 1 to 1 or 3, or from 3 to 3, '
      f'got {shape[-1]} to {channels}'
    )
  return source._replace(inputs=_Resized(source.inputs, size, channels))
