"""The image files below a folder."""

import os
import pathlib

from pecft_jax.text import shortened

# Files with these suffixes are images; those with others are ignored, as are hidden ones.
SUFFIXES = frozenset({
  '.avif', '.bmp', '.gif', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff',
  '.webp',
})  # fmt: skip
# Image formats that Pillow does not read: ignoring them would lose data silently.
_FOREIGN = frozenset({
  '.arw', '.cr2', '.cr3', '.dng', '.heic', '.heif', '.jxl', '.nef', '.orf', '.raf', '.svg',
})  # fmt: skip


def folders_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """The folders in a folder, by name; hidden ones are ignored.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if it is a file.
  """
  check_folder(folder)
  return sorted(each for each in folder.iterdir() if each.is_dir() and not _hidden(each.name))


def images_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """The image files in a folder and in those within it, by path; links are followed.

  Files whose suffix is none of `SUFFIXES`, and hidden files and folders, are ignored.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: for a folder without images, images of a format that cannot be read, or a link to a
      parent folder.
  """
  check_folder(folder)
  found = []
  for root, inner, names in os.walk(folder, followlinks=True, onerror=_raise):
    inner[:] = [name for name in inner if not _hidden(name)]
    here = pathlib.Path(root)
    for name in inner:
      below = here / name
      if below.is_symlink() and here.resolve().is_relative_to(below.resolve()):
        raise ValueError(f'{below} is a link to a folder that it lies in')
    found += [here / name for name in images_among(here, names)]
  if not found:
    raise ValueError(f'{folder} holds no images (files ending in {" ".join(sorted(SUFFIXES))})')
  return sorted(found, key=lambda path: path.relative_to(folder).parts)


def images_among(folder: pathlib.Path, names: list[str]) -> list[str]:
  """The names in a folder that are image files.

  Raises:
    ValueError: for images of a format that cannot be read.
  """
  suffix = {name: os.path.splitext(name)[1].lower() for name in names if not _hidden(name)}
  if foreign := sorted(name for name, end in suffix.items() if end in _FOREIGN):
    raise ValueError(
      f'{folder} has images of formats that are not read: {shortened(foreign, 4)}; save them as '
      'PNG or JPEG'
    )
  return sorted(name for name, end in suffix.items() if end in SUFFIXES)


def check_folder(folder: pathlib.Path) -> None:
  """Raises FileNotFoundError if there is no such folder, and ValueError if it is a file."""
  if not folder.exists():
    raise FileNotFoundError(f'no folder {folder}')
  if not folder.is_dir():
    raise ValueError(f'expected a folder, got the file {folder}')


def _hidden(name: str) -> bool:
  return name.startswith('.')


def _raise(error: OSError) -> None:
  raise error
