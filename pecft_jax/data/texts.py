"""Texts as token ids, through a tokenizer of Hugging Face's `tokenizers`."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pecft_jax.arguments import at_least, checked
from pecft_jax.data.indexing import indexed
from pecft_jax.data.source import Source
from pecft_jax.data.table_files import read_table
from pecft_jax.files import read_object
from pecft_jax.local import local_path

TooLong = Literal['refuse', 'cut']


@checked
def text_table(
  path: str | os.PathLike[str],
  tokenizer: str | os.PathLike[str],
  *,
  length: int,
  pad: int = -1,
  too_long: TooLong = 'refuse',
  class_names: Sequence[str] | None = None,
  domain_names: Sequence[str] | None = None,
  name: str | None = None,
) -> Source:
  """A source of texts from a CSV or JSON-lines file with the columns `text` and `label`.

  The column `domain` is optional, others are ignored. Classes and domains are
  sorted by name. All texts are tokenized here, with the special tokens that the tokenizer adds.

  Args:
    path: of the table, which ends in .csv (with a header) or .jsonl.
    tokenizer: a `tokenizer.json`; needs `pip install 'pecft_jax[text]'`.
    length: T, tokens of each text, such as `backbone.inputs.shape[0]`.
    pad: id of padding, such as `backbone.inputs.pad`.
    too_long: whether a longer text is refused, or truncated; a warning says how many were.
    class_names: of another source, for example the training set of this test set.
    domain_names: of another source, likewise.
    name: of the data set; by default the name of the table.

  Raises:
    FileNotFoundError: if there is no such table or tokenizer.
    ValueError: for a table without these columns, a text without tokens, with more than `length`
      of them or with the pad id among them; names file and line. Also where `tokenizers` is not
      installed.

  >>> import pathlib, pytest
  >>> from pecft_jax import data
  >>> tokenizers = pytest.importorskip('tokenizers')
  >>> words = tokenizers.models.WordLevel({'a': 0, 'cat': 1, 'dog': 2, '?': 3}, unk_token='?')
  >>> tokenizer = tokenizers.Tokenizer(words)
  >>> tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  >>> tokenizer.save('tokenizer.json')
  >>> _ = pathlib.Path('pets.csv').write_text('text,label\\na cat,miaows\\na dog,barks\\n')
  >>> source = data.text_table('pets.csv', 'tokenizer.json', length=3)
  >>> source.inputs.tolist(), source.class_names
  ([[0, 1, -1], [0, 2, -1]], ('barks', 'miaows'))
  """
  file = local_path(path)
  name = name or file.stem
  lines = read_table(file, ('text', 'label'), ('domain',))
  texts = [line.values['text'] for line in lines]
  wheres = [line.where for line in lines]
  inputs = tokenized(file, texts, wheres, tokenizer, length, pad, too_long)
  labels, names = indexed(name, 'class', [line.values['label'] for line in lines], class_names)
  if 'domain' not in lines[0].values:
    return Source(name, inputs, labels, names)
  domains = indexed(name, 'domain', [line.values['domain'] for line in lines], domain_names)
  return Source(name, inputs, labels, names, *domains)


@checked
def text_lines(
  path: str | os.PathLike[str],
  tokenizer: str | os.PathLike[str],
  *,
  length: int,
  pad: int = -1,
  too_long: TooLong = 'refuse',
) -> np.ndarray:
  """Texts without labels, one per line, for prediction.

  Args:
    path: of a file in UTF-8.
    tokenizer: as in `text_table`.
    length: T, tokens of each text.
    pad: id of padding.
    too_long: as in `text_table`.

  Returns:
    Token ids int32 [N, T], one row for each line.

  Raises:
    FileNotFoundError: if there is no such file or tokenizer.
    ValueError: for a file that is not UTF-8 or has no lines, and as `text_table`; an empty line is
      a text without tokens.

  >>> from pecft_jax import data
  >>> data.text_lines('absent.txt', 'tokenizer.json', length=3)
  Traceback (most recent call last):
  FileNotFoundError: no file absent.txt
  """
  file = local_path(path)
  if not file.is_file():
    raise FileNotFoundError(f'no file {file}')
  texts = lines_of(file, file.read_bytes())
  wheres = [f'{file}, line {number}' for number in range(1, len(texts) + 1)]
  return tokenized(file, texts, wheres, tokenizer, length, pad, too_long)


def lines_of(file: str | os.PathLike[str], raw: bytes) -> list[str]:
  """The lines of a text in UTF-8.

  Args:
    file: that it is from, for messages.
    raw: the text; a byte order mark is ignored.

  Raises:
    ValueError: for text that is not UTF-8, or has no lines.

  >>> lines_of('a.txt', b'good\\r\\nvery good\\n')
  ['good', 'very good']
  """
  try:
    text = raw.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file}: expected UTF-8 text, {error}') from error
  lines = text.removesuffix('\n').split('\n')
  if lines == ['']:
    raise ValueError(f'{file} has no lines')
  return lines


def tokenized(
  file: str | os.PathLike[str],
  texts: Sequence[str],
  wheres: Sequence[str],
  tokenizer: str | os.PathLike[str],
  length: int,
  pad: int,
  too_long: TooLong,
) -> np.ndarray:
  """Texts as token ids.

  Args:
    file: that they are from, for messages.
    texts: N of them.
    wheres: the place of each, for messages.
    tokenizer: as in `text_table`.
    length: T.
    pad: id of padding.
    too_long: as in `text_table`.

  Returns:
    int32 [N, T].

  Raises:
    FileNotFoundError: if there is no such tokenizer.
    ValueError: as `text_table`.
  """
  at_least(1, length=length)
  encoded = [each.ids for each in _loaded(tokenizer).encode_batch(list(texts))]
  out = np.full((len(texts), length), pad, np.int32)
  long = [
    (len(ids), where) for ids, where in zip(encoded, wheres, strict=True) if len(ids) > length
  ]
  if long and too_long == 'refuse':
    raise ValueError(
      f'{long[0][1]}: {long[0][0]} tokens, expected at most {length}; {len(long)} of {len(texts)} '
      f"texts are longer, the longest has {max(long)[0]}: give a larger length, or too_long='cut'"
    )
  if long:
    warnings.warn(
      f'{file}: the ends of {len(long)} of {len(texts)} texts are cut off, which have more than '
      f'{length} tokens; the longest has {max(long)[0]}',
      stacklevel=4,
    )
  for row, ids, where in zip(out, encoded, wheres, strict=True):
    if not ids:
      raise ValueError(f'{where}: a text without tokens')
    if pad in ids:
      raise ValueError(f'{where}: the pad id {pad} is a token of the text; give another pad')
    row[: len(ids)] = ids[:length]
  return out


def _loaded(path: str | os.PathLike[str]) -> Any:
  """A tokenizer without truncation and padding."""
  file = local_path(path)
  if not file.is_file():
    raise FileNotFoundError(f'no tokenizer {file}; expected a tokenizer.json')
  try:
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]  -- an extra
  except ModuleNotFoundError as error:
    raise ValueError(
      "texts are tokenized by the package tokenizers: pip install 'pecft_jax[text]'"
    ) from error
  if 'model' not in read_object(file, 'a tokenizer.json'):
    raise ValueError(f'{file} is not a tokenizer.json: it has no model')
  tokenizer = Tokenizer.from_file(str(file))
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer
