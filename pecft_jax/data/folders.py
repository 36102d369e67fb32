"""Sources from folders of images, one folder per class."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pecft_jax.arguments import checked
from pecft_jax.data.found import folders_in, images_among, images_below
from pecft_jax.data.indexing import indexed
from pecft_jax.data.pictures import image_inputs
from pecft_jax.data.source import Source
from pecft_jax.local import local_path
from pecft_jax.text import shortened

SPLITS = frozenset({'train', 'training', 'test', 'testing', 'val', 'valid', 'validation'})


@checked
def image_folder(
  path: str | os.PathLike[str],
  *,
  size: int,
  channels: int = 3,
  class_names: Sequence[str] | None = None,
  convert: bool = False,
  check: bool = True,
  name: str | None = None,
) -> Source:
  """A source over a folder that holds one folder of images per class.

  The folders' names, sorted, are the classes. Images in folders within them count; hidden files
  and files without the suffix of an image are ignored. Files are decoded when they are read, and
  rotated by their EXIF orientation; the centre square is scaled, as in `resize`.

  Args:
    path: of the folder.
    size: side of the images in pixels, such as `backbone.inputs.shape[0]`.
    channels: 3, or 1 for grey images.
    class_names: classes in order, for example those of the training set for a test set; every
      folder must be one of them.
    convert: also accept images of other modes: transparent parts become white, grey is repeated
      over three channels, colours become grey by their luma, and 16 bits keep their upper 8.
    check: read the header of each file now, so that refused images are found before a run, not when
      they are read.
    name: of the data set; by default the folder's name.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: for a folder without images, images outside of the folders of classes, files that
      are no images or have another mode, and classes outside of `class_names`; names the file.

  >>> import pathlib
  >>> from PIL import Image
  >>> from pecft_jax import data
  >>> for kind in ('cat', 'dog'):
  ...   pathlib.Path('pets', kind).mkdir(parents=True)
  ...   Image.new('RGB', (40, 30)).save(f'pets/{kind}/1.png')
  >>> source = data.image_folder('pets', size=16)
  >>> source.class_names, source.inputs[[0, 1]].shape
  (('cat', 'dog'), (2, 16, 16, 3))
  """
  folder = local_path(path)
  name = name or folder.resolve().name
  found = _classes(folder)
  labels, class_names = indexed(name, 'class', [kind for kind, _ in found], class_names)
  inputs = image_inputs([file for _, file in found], size, channels, convert, check)
  return Source(name, inputs, labels, class_names)


@checked
def domain_folders(
  path: str | os.PathLike[str],
  *,
  size: int,
  channels: int = 3,
  class_names: Sequence[str] | None = None,
  domain_names: Sequence[str] | None = None,
  convert: bool = False,
  check: bool = True,
  name: str | None = None,
) -> Source:
  """A source over a folder per domain, each with the layout of `image_folder`.

  This is the layout of PACS and DomainNet: `sketch/dog/1.png`. A domain may lack some of the
  classes.

  Args:
    path: of the folder.
    size: side of the images in pixels.
    channels: 3, or 1 for grey images.
    class_names: as in `image_folder`.
    domain_names: those of another source, likewise.
    convert: as in `image_folder`.
    check: as in `image_folder`.
    name: of the data set; by default the folder's name.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: as in `image_folder`.

  >>> import pathlib
  >>> from PIL import Image
  >>> from pecft_jax import data
  >>> for kind in ('photo/dog', 'sketch/dog'):
  ...   pathlib.Path('styles', kind).mkdir(parents=True)
  ...   Image.new('L', (40, 30)).save(f'styles/{kind}/1.png')
  >>> data.domain_folders('styles', size=16, channels=1).domain_names
  ('photo', 'sketch')
  """
  folder = local_path(path)
  name = name or folder.resolve().name
  below = _inner(folder, 'domain')
  found = [(domain.name, kind, file) for domain in below for kind, file in _classes(domain)]
  domains, domain_names = indexed(name, 'domain', [domain for domain, *_ in found], domain_names)
  labels, class_names = indexed(name, 'class', [kind for _, kind, _ in found], class_names)
  inputs = image_inputs([file for *_, file in found], size, channels, convert, check)
  return Source(name, inputs, labels, class_names, np.asarray(domains), domain_names)


def _classes(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """The class and the path of each image, by class."""
  found = []
  for below in _inner(folder, 'class'):
    found += [(below.name, image) for image in images_below(below)]
  return found


def _inner(folder: pathlib.Path, what: str) -> list[pathlib.Path]:
  """The folders of the classes or domains."""
  inner = folders_in(folder)
  loose = images_among(folder, [each.name for each in folder.iterdir() if each.is_file()])
  expected = f'expected one folder per {what} in {folder}'
  if loose:
    raise ValueError(
      f'{expected}, got also the images {shortened(loose, 4)}: move them into the folder of their '
      f'{what} (image_files reads images without labels)'
    )
  if not inner:
    raise ValueError(f'{expected}, got none')
  if all(each.name in SPLITS for each in inner):
    raise ValueError(
      f'{expected}, got {shortened(each.name for each in inner)}: read one of these, such as '
      f'{inner[0]}'
    )
  return inner
