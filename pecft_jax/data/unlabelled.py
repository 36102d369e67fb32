"""Images without labels, for prediction."""

import os
from collections.abc import Sequence

from pecft_jax.arguments import checked
from pecft_jax.data.found import images_below
from pecft_jax.data.pictures import ImageFiles, image_inputs
from pecft_jax.local import local_path


@checked
def image_files(
  paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
  *,
  size: int,
  channels: int = 3,
  convert: bool = False,
  check: bool = True,
) -> ImageFiles:
  """Image files without labels, for prediction; decoded when they are read.

  Args:
    paths: a file or folder, or several. All images below a folder are read, sorted by path; a file
      is read whatever its suffix.
    size: side of the images in pixels, such as `backbone.inputs.shape[0]`.
    channels: 3, or 1 for grey images.
    convert: as in `image_folder`.
    check: as in `image_folder`.

  Returns:
    Random access to uint8 [N, size, size, channels], with the `paths` of the files.

  Raises:
    FileNotFoundError: for a path that does not exist.
    ValueError: for no path, a folder without images, and files that are no images or have another
      mode; names the file.

  >>> from PIL import Image
  >>> from pecft_jax import data
  >>> Image.new('RGB', (40, 30)).save('a photo.png')
  >>> files = data.image_files('a photo.png', size=16)
  >>> files.paths[0].name, files[[0]].shape
  ('a photo.png', (1, 16, 16, 3))
  """
  given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
  if not given:
    raise ValueError('expected the paths of files or folders, got none')
  found = []
  for each in map(local_path, given):
    if not each.exists():
      raise FileNotFoundError(f'no file or folder {each}')
    found += images_below(each) if each.is_dir() else [each]
  return image_inputs(found, size, channels, convert, check)
