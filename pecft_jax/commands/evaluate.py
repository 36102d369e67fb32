"""`pecft evaluate`: the accuracy of what was learned on another test set."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pecft_jax.commands.examples import Reading, read_labelled
from pecft_jax.commands.learned import Which, learner_of
from pecft_jax.data import Source
from pecft_jax.data.source import select_rows
from pecft_jax.files import write_json
from pecft_jax.learners import Learner
from pecft_jax.local import local_path
from pecft_jax.metrics import confusion_matrix, per_class_accuracy, wilson_interval
from pecft_jax.text import percent, shortened, unknown

LEVEL = 0.95
_MOST = 12  # Classes of a confusion matrix that a terminal shows whole, or pairs of a larger one.


def evaluate(
  which: Which,
  path: pathlib.Path,
  *,
  reading: Callable[[Any], Reading],
  split: str | None,
  as_json: bool,
  out: pathlib.Path | None,
  batch_size: int,
  console: Console,
) -> int:
  """Prints accuracy, that of each class, and which are taken for which."""
  out = None if out is None else local_path(out)
  learner = learner_of(which)
  learner.check_classes()
  source = read_labelled(path, reading(learner.model.backbone.inputs), split)
  found = {'directory': str(which.directory), 'data': str(path)}
  found |= evaluated(learner, source, batch_size)
  if out is not None:
    write_json(out, found)
  if as_json:
    print(json.dumps(found, indent=1))
  else:
    print_evaluated(found, console)
  return 0


def evaluated(learner: Learner, source: Source, batch_size: int = 64) -> dict[str, Any]:
  """The accuracy of a learner on a labelled source, as JSON.

  Classes are matched by name, and predicted among all that were learned. Examples of classes that
  were not learned yet are left out, and counted in `not_learned`.

  Args:
    learner: that classifies.
    source: with the class names of the run, in any order.
    batch_size: of predictions.

  Raises:
    ValueError: for a class that the run does not know, or no example of a class learned so far.
  """
  labels = matched(source, learner)
  learned = learner.seen[labels]
  counts = np.bincount(labels, minlength=len(learner.class_names))
  not_learned = {
    name: int(count)
    for name, count, seen in zip(learner.class_names, counts, learner.seen, strict=True)
    if count and not seen
  }
  if not learned.any():
    raise ValueError(
      f'{source.name!r} has no example of a class learned so far, {shortened(learner.classes)}; '
      f'got {shortened(not_learned)}'
    )
  kept = select_rows(source, np.flatnonzero(learned))
  batches = learner.batches(kept.inputs, batch_size=batch_size)
  answers = np.concatenate([logits.argmax(-1) for logits in batches])
  # Of the classes learned so far, in the order of the outputs.
  place = np.cumsum(learner.seen) - 1
  confusion = confusion_matrix(place[labels[learned]], place[answers], int(learner.seen.sum()))
  correct, examples = int(confusion.trace()), int(confusion.sum())
  return {
    'method': learner.method.name,
    'tasks': learner.tasks,
    'examples': examples,
    'correct': correct,
    'accuracy': correct / examples,
    'interval': list(wilson_interval(correct, examples, LEVEL)),
    'level': LEVEL,
    'per_class': {
      name: _of_class(int(row.sum()), int(row[i]), float(share))
      for i, (name, row, share) in enumerate(
        zip(learner.classes, confusion, per_class_accuracy(confusion), strict=True)
      )
      if row.sum()
    },
    'confusion': {'classes': list(learner.classes), 'matrix': confusion.tolist()},
    'not_learned': not_learned,
  }


def matched(source: Source, learner: Learner) -> np.ndarray:
  """The labels of a source as outputs of a learner [N], by the names of classes.

  Raises:
    ValueError: for a class that the run does not know; suggests the nearest.
  """
  place = {name: i for i, name in enumerate(learner.class_names)}
  outputs = np.full(len(source.class_names), -1, np.int64)
  for label in np.unique(source.labels).tolist():
    name = source.class_names[label]
    if name not in place:
      raise ValueError(f'{source.name!r}: {unknown("class", name, place)}')
    outputs[label] = place[name]
  return outputs[source.labels]


def _of_class(examples: int, correct: int, accuracy: float) -> dict[str, Any]:
  return {
    'examples': examples,
    'correct': correct,
    'accuracy': accuracy,
    'interval': list(wilson_interval(correct, examples, LEVEL)),
  }


def print_evaluated(found: dict[str, Any], console: Console) -> None:
  """Prints what `evaluated` returns as tables."""
  say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
  low, high = found['interval']
  say(
    f'{found["method"]} after {found["tasks"]} tasks: {percent(found["accuracy"])} of '
    f'{found["examples"]:,} examples ({percent(LEVEL, 0)} interval {percent(low)} to '
    f'{percent(high)}), among {len(found["confusion"]["classes"])} classes learned so far'
  )
  if found['not_learned']:
    count = sum(found['not_learned'].values())
    say(
      f'left out: {count:,} examples of classes not learned yet, {shortened(found["not_learned"])}'
    )
  for title, table in (_class_table(found), _confusion_table(found)):
    console.print(f'\n[bold]{title}', highlight=False)
    console.print(table)


def _class_table(found: dict[str, Any]) -> tuple[str, Table]:
  table = _table('class', 'n', 'accuracy', f'{percent(LEVEL, 0)} interval')
  for name, of in found['per_class'].items():
    low, high = map(percent, of['interval'])
    table.add_row(_plain(name), f'{of["examples"]:,}', percent(of['accuracy']), f'{low} to {high}')
  return 'Each class', table


def _confusion_table(found: dict[str, Any]) -> tuple[str, Table]:
  """The whole matrix, or the most frequent errors of a large one."""
  names = found['confusion']['classes']
  matrix = np.asarray(found['confusion']['matrix'])
  if len(names) <= _MOST:
    table = _table('', *names)
    for name, row in zip(names, matrix.tolist(), strict=True):
      table.add_row(_plain(name), *(f'{n:,}' if n else '·' for n in row))
    return 'Confusion: a row for each class, a column for each answer', table
  wrong = matrix * (1 - np.eye(len(names), dtype=np.int64))
  order = np.argsort(-wrong, axis=None, kind='stable')[:_MOST]
  table = _table('class', 'taken for', 'n')
  for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
    if wrong[i, j]:
      table.add_row(_plain(names[i]), _plain(names[j]), f'{wrong[i, j]:,}')
  return 'The most frequent errors', table


def _table(first: str, *others: str) -> Table:
  table = Table(box=None, padding=(0, 2, 0, 0))
  table.add_column(_plain(first))
  for name in others:
    table.add_column(_plain(name), justify='left' if name == 'taken for' else 'right')
  return table


def _plain(name: str) -> Any:
  """A name of the user's, which may hold what looks like markup."""
  from rich.text import Text

  return Text(name)
