"""A source from one `.npz` file."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pecft_jax.data.in_arrays import arrays
from pecft_jax.data.source import Source
from pecft_jax.local import local_path

_REQUIRED = ('images', 'labels', 'class_names')
_OPTIONAL = ('domains', 'domain_names')


def npz(path: str | os.PathLike[str], name: str | None = None) -> Source:
  """Reads `images` uint8 [N, H, W, C], `labels` [N] and `class_names` [classes] from a file.

  `domains` [N] and `domain_names` are read where present, other keys are ignored.

  Args:
    path: of the file.
    name: of the data set; by default the file's name.
  """
  path = local_path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no file {path}; expected an .npz with the keys {_REQUIRED}')
  fields = _read(path)
  try:
    return arrays(
      name or path.stem,
      fields['images'],
      fields['labels'],
      np.atleast_1d(fields['class_names']).tolist(),
      domains=fields.get('domains'),
      domain_names=np.atleast_1d(fields['domain_names']).tolist()
      if 'domain_names' in fields
      else None,
    )
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _read(path: Path) -> dict[str, np.ndarray]:
  try:
    # Opened by hand, since np.load takes other formats than .npz too.
    with zipfile.ZipFile(path) as archive:
      keys = [member.removesuffix('.npy') for member in archive.namelist()]
    missing = [key for key in _REQUIRED if key not in keys]
    if not missing:
      with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in (*_REQUIRED, *_OPTIONAL) if key in keys}
  except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
    raise ValueError(f'{path} is truncated or not an .npz file: {error}') from error
  raise ValueError(f'{path}: expected the keys {_REQUIRED}, got {keys}; missing: {missing}')
