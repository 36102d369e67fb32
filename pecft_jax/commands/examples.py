"""Examples of the command line: files, folders and texts as a backbone reads them."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pecft_jax.data import Source, image_files, image_folder, image_list, npz, resize, text_table
from pecft_jax.data.npz_files import npz_inputs
from pecft_jax.data.source import RandomAccess, input_shape
from pecft_jax.data.table_files import SUFFIXES as TABLES
from pecft_jax.data.table_files import read_table
from pecft_jax.data.texts import lines_of, tokenized
from pecft_jax.local import local_path
from pecft_jax.typing import InputSpec

STANDARD_INPUT = '-'


class Examples(NamedTuple):
  """Inputs without labels, with a name for each row."""

  names: Sequence[str]
  inputs: RandomAccess


@dataclasses.dataclass(frozen=True)
class Reading:
  """How files become inputs of a backbone.

  Attributes:
    spec: of the backbone's inputs.
    convert: accept images of other modes.
    tokenizer: a tokenizer.json; needed for texts.
    cut: cut texts that are too long, which are refused otherwise.
  """

  spec: InputSpec
  convert: bool = False
  tokenizer: pathlib.Path | None = None
  cut: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError for flags that are for inputs of another kind."""
    given = {'--convert': self.convert, '--tokenizer': self.tokenizer, '--cut': self.cut}
    others = ('--convert',) if self.texts else ('--tokenizer', '--cut')
    if wrong := [flag for flag in others if given[flag]]:
      raise ValueError(f'the backbone reads {self.spec.what}, which {wrong[0]} is not for')

  @property
  def texts(self) -> bool:
    """Whether inputs are token ids."""
    return self.spec.kind == 'tokens'


def read_examples(given: Sequence[str], reading: Reading) -> list[Examples]:
  """Examples without labels, in the order of the command line.

  Images are decoded when they are read, but the header of each file is checked here. Texts are
  tokenized here.

  Args:
    given: paths; `-` is standard input, for texts.
    reading: how they are read.

  Raises:
    FileNotFoundError: for a path that does not exist.
    ValueError: for files that are not what the backbone reads; names the first.
  """
  if given.count(STANDARD_INPUT) > 1:
    raise ValueError('standard input (-) is read once, got it twice')
  if reading.texts:
    return [_texts(each, reading) for each in given]
  found = []
  # Neighbouring files and folders are read together, so that batches are full.
  for arrays, group in itertools.groupby(given, _is_npz):
    paths = list(group)
    found += [_arrays(each, reading) for each in paths] if arrays else [_images(paths, reading)]
  return found


def read_labelled(path: pathlib.Path, reading: Reading, split: str | None = None) -> Source:
  """Examples with labels: a folder per class, a table, or arrays.

  Args:
    path: of a folder, or a file that ends in .csv, .jsonl or .npz.
    reading: how they are read.
    split: of a table, reads only rows with this `split`.

  Raises:
    FileNotFoundError: if there is no such file or folder.
    ValueError: if it is no such data set, or of another kind than the backbone reads.
  """
  path = local_path(path)
  if not path.exists():
    raise FileNotFoundError(f'no file or folder {path}')
  suffix = path.suffix.lower()
  table = suffix in TABLES and path.is_file()
  if split is not None and (reading.texts or not table):
    raise ValueError(f'--split is for tables of images, got {path}')
  if _is_npz(str(path)):
    source = npz(path)
    return source if reading.texts else _fitted(source, reading)
  if not (table or (path.is_dir() and not reading.texts)):
    folder = '' if reading.texts else 'a folder per class, or '
    raise ValueError(f'expected {folder}a file that ends in .csv, .jsonl or .npz, got {path}')
  if reading.texts:
    return text_table(path, _tokenizer(reading), **_lengths(reading))
  options = {'size': _side(reading), 'channels': reading.spec.shape[-1], 'convert': reading.convert}
  return image_list(path, split=split, **options) if table else image_folder(path, **options)


def _is_npz(path: str) -> bool:
  return path.lower().endswith('.npz') and not local_path(path).is_dir()


def _images(paths: Sequence[str], reading: Reading) -> Examples:
  side, channels = _side(reading), reading.spec.shape[-1]
  files = image_files(paths, size=side, channels=channels, convert=reading.convert)
  return Examples([str(path) for path in files.paths], files)


def _arrays(path: str, reading: Reading) -> Examples:
  images = npz_inputs(path)
  source = Source(path, images, np.zeros(len(images), np.int64), ('',))
  inputs = (_fitted(source, reading) if len(images) else source).inputs
  return Examples([f'{path}[{i}]' for i in range(len(images))], inputs)


def _texts(path: str, reading: Reading) -> Examples:
  tokenizer, lengths = _tokenizer(reading), _lengths(reading)
  if path == STANDARD_INPUT:
    texts = lines_of('standard input', sys.stdin.buffer.read())
  else:
    file = local_path(path)
    if not file.is_file():
      raise FileNotFoundError(f'no file {file}')
    if file.suffix.lower() in TABLES:
      lines = read_table(file, ('text',))
      wheres = [line.where for line in lines]
      names = [':'.join(where.rsplit(', line ', 1)) for where in wheres]
      texts = [line.values['text'] for line in lines]
      return Examples(names, tokenized(path, texts, wheres, tokenizer, **lengths))
    texts = lines_of(file, file.read_bytes())
  numbers = range(1, len(texts) + 1)
  wheres = [f'{path}, line {number}' for number in numbers]
  names = [f'{path}:{number}' for number in numbers]
  return Examples(names, tokenized(path, texts, wheres, tokenizer, **lengths))


def _fitted(source: Source, reading: Reading) -> Source:
  """Images in arrays as the backbone reads them."""
  side, channels = _side(reading), reading.spec.shape[-1]
  shape = input_shape(source)
  if shape == tuple(reading.spec.shape):
    return source
  if (shape[-1], channels) == (1, 3) and not reading.convert:
    raise ValueError(
      f'{source.name}: expected images of 3 channels, got {list(shape)}; --convert repeats the one'
    )
  return resize(source, side, channels)


def _side(reading: Reading) -> int:
  shape = reading.spec.shape
  if reading.spec.kind != 'image' or len(shape) != 3 or shape[0] != shape[1]:
    raise ValueError(
      f'the backbone reads {reading.spec.what} {list(shape)}: files are read as square images alone'
    )
  return shape[0]


def _tokenizer(reading: Reading) -> pathlib.Path:
  if reading.tokenizer is None:
    raise ValueError('the backbone reads token ids: --tokenizer names the tokenizer.json of texts')
  return reading.tokenizer


def _lengths(reading: Reading) -> dict[str, Any]:
  spec = reading.spec
  too_long = 'cut' if reading.cut else 'refuse'
  return {'length': spec.shape[0], 'pad': getattr(spec, 'pad', -1), 'too_long': too_long}
