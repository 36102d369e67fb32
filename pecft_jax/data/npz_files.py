"""A source from one `.npz` file."""

import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pecft_jax.data.in_arrays import arrays
from pecft_jax.data.source import Source
from pecft_jax.local import local_path

# What zipfile and numpy raise for damaged bytes, all of it found by damaging some: RuntimeError and
# NotImplementedError of encrypted or foreign compression, MemoryError and OverflowError of a header
# that claims an absurd shape, SyntaxError and TokenError of one that is no literal, SystemError of
# odd names.
_UNREADABLE = (
  zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, EOFError,
  KeyError, MemoryError, NotImplementedError, OSError, OverflowError, RuntimeError, SyntaxError,
  SystemError, TypeError, ValueError,
)  # fmt: skip
_REQUIRED = ('images', 'labels', 'class_names')
_OPTIONAL = ('domains', 'domain_names')
_NAMES = ('class_names', 'domain_names')


def npz(path: str | os.PathLike[str], name: str | None = None) -> Source:
  """Reads `images` uint8 [N, H, W, C], `labels` [N] and `class_names` [classes] from a file.

  `domains` [N] and `domain_names` are read where present, other keys are ignored.

  Args:
    path: of the file.
    name: of the data set; by default the file's name.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is not an .npz file with these keys, or they do not fit together.

  >>> import numpy as np
  >>> from pecft_jax import data
  >>> images = np.zeros((2, 8, 8, 1), np.uint8)
  >>> np.savez('mine.npz', images=images, labels=[0, 1], class_names=['cat', 'dog'])
  >>> data.npz('mine.npz').class_names
  ('cat', 'dog')
  """
  path = local_path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no file {path}; expected an .npz with the keys {_REQUIRED}')
  fields = _read(path, _REQUIRED, _OPTIONAL)
  try:
    return arrays(
      name or path.stem,
      fields['images'],
      fields['labels'],
      fields['class_names'],
      domains=fields.get('domains'),
      domain_names=fields.get('domain_names'),
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def npz_inputs(path: str | os.PathLike[str]) -> np.ndarray:
  """The `images` of a file, without labels; other keys are ignored.

  Args:
    path: of the file.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: as `npz`.

  >>> np.savez('mine.npz', images=np.zeros((2, 8, 8, 1), np.uint8))
  >>> npz_inputs('mine.npz').shape
  (2, 8, 8, 1)
  """
  path = local_path(path)
  if not path.is_file():
    raise FileNotFoundError(f"no file {path}; expected an .npz with the key 'images'")
  images = _read(path, ('images',))['images']
  source = arrays(str(path), images, np.zeros(len(np.atleast_1d(images)), np.int64))
  return np.asarray(source.inputs)


def _read(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
  try:
    # Opened as a zip file, since np.load also reads other formats than .npz.
    with zipfile.ZipFile(path) as archive:
      keys = [member.removesuffix('.npy') for member in archive.namelist()]
    file = np.load(path, allow_pickle=False)
  except _UNREADABLE as error:
    raise ValueError(f'{path} is truncated or not an .npz file: {error}') from error
  with file:
    missing = [key for key in required if key not in keys]
    if missing:
      raise ValueError(
        f'{path}: expected the keys {tuple(required)}, got {keys}; missing: {missing}'
      )
    wanted = [key for key in (*required, *optional) if key in keys]
    if twice := [key for key in wanted if keys.count(key) > 1]:
      raise ValueError(f'{path} holds {twice} twice')
    return {key: _entry(path, file, key) for key in wanted}


def _entry(path: Path, file: Any, key: str) -> Any:
  try:
    # Text may hold invalid code points, which raise an error when it is read.
    return np.atleast_1d(file[key]).tolist() if key in _NAMES else file[key]
  except _UNREADABLE as error:
    # Not only where it is damaged: object arrays are pickles, which may run code.
    raise ValueError(f'{path}: the entry {key!r} cannot be read: {error}') from error
