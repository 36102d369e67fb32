"""`pecft predict`: labels of examples without any, as CSV or JSON lines."""

import csv
import io
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from pecft_jax.commands.examples import Examples, Reading, read_examples
from pecft_jax.commands.learned import Which, learner_of
from pecft_jax.files import json_line, replacing
from pecft_jax.learners import Learner
from pecft_jax.learners.learner import softmax
from pecft_jax.local import local_path
from pecft_jax.text import unknown

Chance = tuple[str, np.float32]  # The name of a class, and its probability.


class Format(NamedTuple):
  """A format of predictions.

  Attributes:
    header: `(top) -> text` before all rows.
    row: `(name, chances) -> text`, with the most probable classes, the first one first.
  """

  header: Callable[[int], str]
  row: Callable[[str, Sequence[Chance]], str]


def predict(
  which: Which,
  given: Sequence[str],
  *,
  reading: Callable[[Any], Reading],
  out: pathlib.Path | None,
  form: str | None,
  top: int,
  batch_size: int,
) -> int:
  """Writes a row for each example.

  Args:
    which: learner predicts.
    given: files, folders, or `-`.
    reading: `(input specification) -> Reading`.
    out: the file; None is standard output, on which there is nothing else.
    form: of `FORMATS`; None goes by the suffix of `out`.
    top: number of classes in a row.
    batch_size: of predictions.
  """
  out = None if out is None else local_path(out)
  write = _format(form, out)
  learner = learner_of(which)
  learner.check_classes()
  if not 1 <= top <= len(learner.classes):
    raise ValueError(
      f'expected --top of 1 to {len(learner.classes)}, the classes learned, got {top}'
    )
  parts = read_examples(given, reading(learner.model.backbone.inputs))
  texts = _written(learner, parts, write, top, batch_size)
  if out is None:
    for text in texts:
      # The bytes of a file's name are written as they are.
      sys.stdout.buffer.write(text.encode('utf-8', 'surrogateescape'))
      sys.stdout.buffer.flush()
    return 0
  with replacing(out) as file:
    for text in texts:
      file.write(text.encode('utf-8', 'surrogateescape'))
  count = sum(len(part.names) for part in parts)
  Console(stderr=True).print(
    f'{count:,} predictions of {learner.method.name} after {learner.tasks} tasks → {out}',
    highlight=False,
    markup=False,
    soft_wrap=True,
  )
  return 0


def _written(
  learner: Learner, parts: Sequence[Examples], write: Format, top: int, batch_size: int
) -> Iterator[str]:
  """The text of each batch; the header comes with the first, when nothing was refused."""
  header = write.header(top)
  for part in parts:
    names = iter(part.names)
    for logits in learner.batches(part.inputs, batch_size=batch_size):
      best = np.argsort(-logits, axis=-1, kind='stable')[:, :top]
      rows = zip(best.tolist(), np.take_along_axis(softmax(logits), best, -1), strict=True)
      yield header + ''.join(
        write.row(next(names), [(learner.class_names[c], p) for c, p in zip(*row, strict=True)])
        for row in rows
      )
      header = ''


def _format(form: str | None, out: pathlib.Path | None) -> Format:
  if form is None:
    suffix = '' if out is None else out.suffix.lower().removeprefix('.')
    form = suffix if suffix in FORMATS else 'csv'
  if form not in FORMATS:
    raise unknown('format', form, FORMATS)
  return FORMATS[form]


def _csv_header(top: int) -> str:
  more = [f'{name}_{i}' for i in range(2, top + 1) for name in ('label', 'probability')]
  return _csv_line(['input', 'label', 'probability', *more])


def _csv_row(name: str, chances: Sequence[Chance]) -> str:
  return _csv_line([name, *(value for label, p in chances for value in (label, str(p)))])


def _csv_line(values: Sequence[str]) -> str:
  text = io.StringIO()
  # With this end of a line, values that hold either of its characters are quoted.
  csv.writer(text, lineterminator='\r\n').writerow(values)
  return text.getvalue().removesuffix('\r\n') + '\n'


def _json_row(name: str, chances: Sequence[Chance]) -> str:
  # As short as the float32 is written, not with the digits of a float64.
  first, *more = [{'label': label, 'probability': float(str(p))} for label, p in chances]
  return json_line({'input': name, **first, **({'next': more} if more else {})})


FORMATS = {
  'csv': Format(_csv_header, _csv_row),
  'jsonl': Format(lambda top: '', _json_row),
}
