"""A source from a list of image files with their labels."""

import os
import pathlib
from collections.abc import Sequence

from pecft_jax.arguments import checked
from pecft_jax.data.indexing import indexed
from pecft_jax.data.pictures import image_inputs
from pecft_jax.data.source import Source
from pecft_jax.data.table_files import Line, read_table
from pecft_jax.local import local_path
from pecft_jax.text import unknown


@checked
def image_list(
  path: str | os.PathLike[str],
  *,
  size: int,
  channels: int = 3,
  root: str | os.PathLike[str] | None = None,
  split: str | None = None,
  class_names: Sequence[str] | None = None,
  domain_names: Sequence[str] | None = None,
  convert: bool = False,
  check: bool = True,
  name: str | None = None,
) -> Source:
  """A source from a CSV or JSON-lines file with the columns `path` and `label`.

  The columns `domain` and `split` are optional, others are ignored. Classes and
  domains are sorted by name, and are those of all rows, so that all splits of a file agree.

  Args:
    path: of the list, which ends in .csv (with a header) or .jsonl.
    size: side of the images in pixels, such as `backbone.inputs.shape[0]`.
    channels: 3, or 1 for grey images.
    root: folder that the paths of images are relative to; by default that of the list.
    split: reads only rows with this `split`, such as `'test'`; by default all.
    class_names: of another source, as in `image_folder`.
    domain_names: of another source, likewise.
    convert: as in `image_folder`.
    check: as in `image_folder`.
    name: of the data set; by default the name of the list.

  Raises:
    FileNotFoundError: if there is no such list.
    ValueError: for a list without these columns, a file that is not there, is no image or has
      another mode, and an unknown split, class or domain; names file and line.

  >>> import pathlib
  >>> from PIL import Image
  >>> from pecft_jax import data
  >>> for name in 'ab':
  ...   Image.new('RGB', (40, 30)).save(f'{name}.png')
  >>> _ = pathlib.Path('pets.csv').write_text('path,label\\na.png,dog\\nb.png,cat\\n')
  >>> source = data.image_list('pets.csv', size=16)
  >>> source.class_names, source.labels.tolist()
  (('cat', 'dog'), [1, 0])
  """
  file = local_path(path)
  name = name or file.stem
  lines = read_table(file, ('path', 'label'), ('domain', 'split'))
  # Of all rows: a split may lack some of the classes.
  names = class_names or indexed(name, 'class', [line.values['label'] for line in lines], None)[1]
  has_domains = 'domain' in lines[0].values
  if has_domains and domain_names is None:
    domain_names = indexed(name, 'domain', [line.values['domain'] for line in lines], None)[1]
  elif domain_names and not has_domains:
    raise ValueError(f'{file}: expected a column domain with the domain_names, got none')
  lines = lines if split is None else _split_of(file, lines, split)
  labels, names = indexed(name, 'class', [line.values['label'] for line in lines], names)
  folder = file.parent if root is None else local_path(root)
  inputs = image_inputs((_found(folder, each) for each in lines), size, channels, convert, check)
  if not has_domains:
    return Source(name, inputs, labels, names)
  domains = indexed(name, 'domain', [line.values['domain'] for line in lines], domain_names)
  return Source(name, inputs, labels, names, *domains)


def _found(folder: pathlib.Path, line: Line) -> pathlib.Path:
  file = folder / local_path(line.values['path'])
  if not file.is_file():
    raise ValueError(f'{line.where}: no file {file}')
  return file


def _split_of(file: pathlib.Path, lines: list[Line], split: str) -> list[Line]:
  if 'split' not in lines[0].values:
    raise ValueError(f'{file}: expected a column split for split={split!r}, got none')
  found = [line for line in lines if line.values['split'] == split]
  if not found:
    raise ValueError(f'{file}: {unknown("split", split, {e.values["split"] for e in lines})}')
  return found
