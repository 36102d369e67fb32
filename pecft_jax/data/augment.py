"""Image augmentation as pure functions of images and uniform numbers.

Randomness comes in as an argument, a fixed number K of uniforms per example,
so that a view is a function of the image and these numbers alone.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from pecft_jax.arguments import at_least
from pecft_jax.data.resizing import scale_part
from pecft_jax.settings import recorded


class Views(Protocol):
  """Augments a batch of images; a function of its arguments alone."""

  def __call__(self, images: np.ndarray, u: np.ndarray, /) -> np.ndarray:
    """Returns new images uint8 [n, H, W, C], each from its own row of `u`; changes no argument.

    Args:
      images: uint8 [n, H, W, C].
      u: float32 [n, K] in [0, 1), all the randomness there is.
    """
    ...


class Augmentation(NamedTuple):
  """A random change of images.

  Attributes:
    uniforms: K, how many uniform numbers an example takes.
    apply: makes the views.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  uniforms: int
  apply: Views
  settings: Mapping[str, Any] | None = None


@recorded
def compose(*augmentations: Augmentation) -> Augmentation:
  """Applies augmentations one after another, the first one first.

  Args:
    *augmentations: in the order in which they are applied.

  >>> from pecft_jax import data
  >>> views = data.compose(data.random_crop(1), data.horizontal_flip())
  >>> views.uniforms
  3
  """
  ends = np.cumsum([a.uniforms for a in augmentations]).tolist()

  def apply(images, u):
    for augmentation, end in zip(augmentations, ends, strict=True):
      images = augmentation.apply(images, u[:, end - augmentation.uniforms : end])
    return images

  return Augmentation(sum(a.uniforms for a in augmentations), apply)


@recorded
def horizontal_flip() -> Augmentation:
  """Mirrors half of the images, left to right.

  >>> from pecft_jax import data
  >>> data.horizontal_flip().uniforms
  1
  """

  def apply(images, u):
    flip = u[:, 0] < 0.5
    out = images.copy()
    out[flip] = images[flip, :, ::-1]
    return out

  return Augmentation(1, apply)


@recorded
def brightness(amount: float) -> Augmentation:
  """Scales each image by a factor of 1 - `amount` to 1 + `amount`, as torchvision's ColorJitter.

  Args:
    amount: the largest change, in [0, 1].

  Raises:
    ValueError: for another amount.

  >>> from pecft_jax import data
  >>> data.brightness(0.25).uniforms
  1
  """
  if not 0 <= amount <= 1:
    raise ValueError(f'expected an amount in [0, 1], got {amount}')

  def apply(images, u):
    factor = 1 - amount + 2 * amount * u[:, 0].astype(np.float32)
    scaled = images * factor.astype(np.float32)[:, None, None, None]
    return np.minimum(scaled, 255).astype(np.uint8)  # Clipped, as PIL does.

  return Augmentation(1, apply)


@recorded
def random_crop(padding: int) -> Augmentation:
  """Shifts images by up to `padding` pixels along each axis; the border is filled with black.

  Args:
    padding: the largest shift in pixels.

  Raises:
    ValueError: for a negative padding.

  >>> from pecft_jax import data
  >>> data.random_crop(1).uniforms
  2
  """
  if padding < 0:
    raise ValueError(f'expected a padding of at least 0, got {padding}')

  def apply(images, u):
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = np.floor(u * np.float32(2 * padding + 1)).astype(np.int64).T
    out = np.empty_like(images)
    # One slice copy per image is faster than a gather of single pixels.
    for i, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
      out[i] = padded[i, y : y + height, x : x + width]
    return out

  return Augmentation(2, apply)


@recorded
def random_resized_crop(
  size: int | None = None,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Augmentation:
  """Stretches a random part of each image to the full size (Szegedy et al., 2014, arXiv:1409.4842).

  Each part is drawn once and trimmed to the image where it would stick out, in
  place of the usual ten attempts.

  Args:
    size: side of the new images; None keeps height and width.
    scale: range of the part's share of the area.
    ratio: range of its width over height.

  Raises:
    ValueError: for empty ranges, a size below 1, or images of other than 1 or 3 channels.

  >>> from pecft_jax import data
  >>> data.random_resized_crop().uniforms
  4
  """
  at_least(1, size=size)
  if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
    raise ValueError(f'expected ranges 0 < low <= high, scale up to 1; got {scale}, {ratio}')

  def apply(images, u):
    n, height, width, channels = images.shape
    if channels not in (1, 3):
      raise ValueError(f'random_resized_crop expects images of 1 or 3 channels, got {channels}')
    u = u.astype(np.float64)
    area = height * width * (scale[0] + u[:, 0] * (scale[1] - scale[0]))
    aspect = np.exp(np.log(ratio[0]) + u[:, 1] * np.log(ratio[1] / ratio[0]))
    part_height = np.clip(np.sqrt(area / aspect), 1, height)
    part_width = np.clip(np.sqrt(area * aspect), 1, width)
    top, left = u[:, 2] * (height - part_height), u[:, 3] * (width - part_width)
    boxes = np.stack([left, top, left + part_width, top + part_height], axis=1)
    out = np.empty((n, size or height, size or width, channels), np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
      out[i] = scale_part(images[i], out.shape[1:3], (x0, y0, x1, y1))
    return out

  return Augmentation(4, apply)
