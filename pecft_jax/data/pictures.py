"""Image files, decoded when they are read.

Pillow's mode, bit depth and transparency of a file are in its header, so that a data set can be
checked before anything is decoded.
"""

import collections
import dataclasses
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from pecft_jax.arguments import at_least
from pecft_jax.data.resizing import centre_square

if TYPE_CHECKING:
  from PIL.Image import Image

T = TypeVar('T')
R = TypeVar('R')

MODES = {1: 'L', 3: 'RGB'}  # By the number of channels.
_NAMES = {1: 'grey', 3: 'RGB'}
_DEEP = 'of 16 bits'
_CLEAR = 'with transparency'
# Modes of eight bits or less that Pillow converts to RGB.
_SHALLOW = {'1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'LAB', 'HSV'}
_SIXTEEN = {'I;16', 'I;16L', 'I;16B', 'I;16N'}
_GREY = {'1', 'L', 'LA', 'La', *_SIXTEEN}
_ALPHA = {'LA', 'La', 'PA', 'RGBA', 'RGBa'}
# Exceptions of decoders for damaged bytes, besides OSError.
_DAMAGED = (
  AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RuntimeError,
  SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
_THREADS = 8
_FEW = 8  # Fewer files are read without threads.


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ImageFiles:
  """Image files as random access: those of the asked rows are read and decoded.

  Attributes:
    paths: of the files.
    size: side of the decoded images, in pixels.
    channels: of the decoded images, 1 or 3.
    convert: whether files of other modes are converted; otherwise they are refused.
    kinds: how many files there are of each mode; None where the headers were not read.
  """

  paths: tuple[pathlib.Path, ...]
  size: int
  channels: int
  convert: bool = False
  kinds: Mapping[str, int] | None = None

  def __post_init__(self) -> None:
    """Raises ValueError for a size or a number of channels that images cannot have."""
    at_least(1, size=self.size)
    if self.channels not in MODES:
      raise ValueError(f'expected channels of 1 or 3, got {self.channels}')

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    paths = [self.paths[row] for row in np.asarray(rows, np.int64).tolist()]
    out = np.empty((len(paths), self.size, self.size, self.channels), np.uint8)

    def put(i: int) -> None:
      out[i] = decoded(paths[i], self.size, self.channels, self.convert)

    in_threads(put, range(len(paths)))
    return out

  @property
  def converted(self) -> str:
    """How many files of which modes are converted, and how; empty where none is known to be."""
    return '; '.join(
      f'{count} of mode {kind}: {_conversion(kind, self.channels)}'
      for kind, count in (self.kinds or {}).items()
      if kind != MODES[self.channels]
    )

  def __repr__(self) -> str:
    return f'ImageFiles({len(self)} files, {self.size} x {self.size} x {self.channels})'


def image_inputs(
  paths: Iterable[pathlib.Path], size: int, channels: int, convert: bool, check: bool
) -> ImageFiles:
  """The files as inputs of a source; with `check`, their headers are checked first.

  Raises:
    ValueError: for a size below 1, other channels than 1 or 3, files that are no images, or images
      of a mode that is refused.
  """
  inputs = ImageFiles(tuple(paths), size, channels, convert)
  if not check:
    return inputs
  kinds = in_threads(kind_of, inputs.paths)
  _check_kinds(inputs.paths, kinds, channels, convert)
  return dataclasses.replace(inputs, kinds=dict(collections.Counter(kinds)))


def in_threads(function: Callable[[T], R], values: Sequence[T]) -> list[R]:
  """`[function(v) for v in values]`, several at a time: Pillow decodes outside of Python's lock."""
  if len(values) <= _FEW:
    return [function(value) for value in values]
  with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
    return list(pool.map(function, values))


def kind_of(path: str | os.PathLike[str]) -> str:
  """The mode of an image file, with its depth and transparency; reads the header alone.

  Raises:
    ValueError: if the file is no image; names it.
  """
  return opened(str(path), path, _kind)


def decoded(
  path: str | os.PathLike[str], size: int, channels: int, convert: bool = False
) -> np.ndarray:
  """The centre square of an image file, upright as its EXIF orientation says.

  Args:
    path: of the file.
    size: side of the result, in pixels.
    channels: 1 or 3.
    convert: see `as_mode`.

  Returns:
    uint8 [size, size, channels].

  Raises:
    ValueError: if the file is no image or not whole, or has another mode; names it.
  """
  kind, picture = opened(str(path), path, lambda picture: (_kind(picture), upright(picture)))
  if kind != MODES[channels]:
    _check_kinds([path], [kind], channels, convert)
  return centre_square(as_mode(picture, MODES[channels]), size)


def upright(picture: 'Image') -> 'Image':
  """An image, decoded and rotated by its EXIF orientation."""
  from PIL import ImageOps

  ImageOps.exif_transpose(loaded(picture), in_place=True)
  return picture


def loaded(picture: 'Image') -> 'Image':
  """An image, decoded."""
  picture.load()
  return picture


def as_mode(picture: 'Image', mode: str) -> 'Image':
  """Converts an image to a mode: transparent parts become white, 16 bits keep their upper 8.

  Colours become grey by their luma (ITU-R BT.601), grey is repeated over the channels.

  Args:
    picture: a Pillow image of 8 or 16 bits.
    mode: Pillow's: 'L' or 'RGB'.
  """
  from PIL import Image

  if picture.mode in _SIXTEEN:
    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
  if picture.mode == mode:
    return picture
  return (picture if picture.mode in _GREY else picture.convert('RGB')).convert(mode)


def opened(where: str, file: str | os.PathLike[str] | BinaryIO, read: Callable[..., R]) -> R:
  """Opens an image, and returns what `read` reads of it.

  Args:
    where: its place, for messages.
    file: its path, or a file of bytes.
    read: `(image, not decoded yet) -> result`.

  Raises:
    ValueError: if the file is no image or not whole; says where.
  """
  from PIL import Image

  try:
    with Image.open(file) as picture:
      return read(picture)
  except (*_DAMAGED, Image.DecompressionBombError) as error:
    if isinstance(error, OSError) and not isinstance(error, Image.UnidentifiedImageError):
      why = error.strerror or str(error)
    else:
      why = 'its format is unknown' if isinstance(error, OSError) else str(error)
    raise ValueError(f'{where} cannot be read as an image: {why}') from error


def _kind(picture: Any) -> str:
  """`kind_of` of an image that is not decoded yet."""
  # Pillow reads colours with 8 bits only, and drops the others of deeper files.
  deep = picture.mode in _SIXTEEN or any(';16' in str(tile[3]) for tile in picture.tile)
  clear = 'transparency' in picture.info or picture.mode in _ALPHA
  return ' '.join([picture.mode, *([_DEEP] if deep else []), *([_CLEAR] if clear else [])])


def _conversion(kind: str, channels: int) -> str | None:
  """The conversion of an image of a kind, in words; None for an unknown kind."""
  mode = kind.partition(' ')[0]
  if mode not in _SHALLOW | _SIXTEEN:
    return None
  steps = ['the upper 8 bits are kept'] if _DEEP in kind else []
  if _CLEAR in kind:
    steps.append('transparent parts become white')
  if channels == 3 and mode in _GREY:
    steps.append('grey is repeated over the channels')
  elif channels == 1 and mode not in _GREY:
    steps.append('colours become grey')
  elif mode == '1':
    steps.append('bits become 0 and 255')
  elif mode not in {'L', 'RGB', *_SIXTEEN, *_ALPHA}:
    steps.append(f'colours become {_NAMES[channels]}')
  return ', '.join(steps)


def _check_kinds(
  paths: Sequence[str | os.PathLike[str]], kinds: Sequence[str], channels: int, convert: bool
) -> None:
  """Raises ValueError for images that are refused: says how many of each kind, and what to do."""
  others = collections.Counter(kind for kind in kinds if kind != MODES[channels])
  ways = {kind: _conversion(kind, channels) for kind in others}
  if convert:
    others = {kind: count for kind, count in others.items() if ways[kind] is None}
  if not others:
    return
  first = {kind: paths[kinds.index(kind)] for kind in others}
  found = '; '.join(
    f'{count} of mode {kind} ({first[kind]})' if len(paths) > 1 else f'{first[kind]} is {kind}'
    for kind, count in others.items()
  )
  message = f'expected {_NAMES[channels]} images of 8 bits a channel, got {found}; '
  if unknown := [kind for kind in others if ways[kind] is None]:
    message += f'what values of mode {", ".join(unknown)} mean is not known: save them with 8 bits'
  else:
    message += 'convert=True takes them: ' + '; '.join(
      f'{way} ({kind})' for kind, way in ways.items() if kind in others
    )
  raise ValueError(message)
