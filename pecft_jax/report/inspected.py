"""The facts about a work directory as tables for the terminal."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pecft_jax.settings import one_line
from pecft_jax.text import percent, size


def print_inspected(facts: Mapping[str, Any], console: Console, *, leaves: bool = False) -> None:
  """Prints what `pecft_jax.workdir.inspection.inspect_run` found.

  Args:
    facts: found.
    console: to print on.
    leaves: every leaf of the state with its shape, too.
  """
  console.print(Text(_headline(facts), style='bold'))
  for name, value in _identity(facts).items():
    console.print(Text(f'  {name}: {value}'), soft_wrap=True)
  tables = [_checkpoints(facts), _state(facts), _leaves(facts) if leaves else None, _files(facts)]
  for table in tables:
    if table is not None and table.row_count:
      console.print()
      console.print(table)
  for name, reference in facts['references'].items():
    line = f'reference {name}: {_standing(reference)}, {size(reference["bytes"])}'
    console.print(Text(line), soft_wrap=True)
  problems = problems_of(facts)
  console.print()
  for problem in problems:
    console.print(Text(f'problem: {problem}', style='red'), soft_wrap=True)
  if not problems:
    whole = all(each['verified'] for each in facts['checkpoints'])
    read = 'arrays read, digests hold' if whole else 'arrays not read (--verify reads them)'
    console.print(Text(f'no problems; {read}' if facts['checkpoints'] else 'no problems'))


def problems_of(facts: Mapping[str, Any]) -> list[str]:
  """The problems of a work directory and of its references."""
  beside = [
    f'reference {name}: {problem}'
    for name, reference in facts['references'].items()
    for problem in problems_of(reference)
  ]
  return [*facts['problems'], *beside]


def _headline(facts: Mapping[str, Any]) -> str:
  return f'{facts["directory"]}: {facts["method"] or "unknown method"}, {_standing(facts)}'


def _standing(facts: Mapping[str, Any]) -> str:
  status = facts['status']
  if status == 'running' and facts['process']:
    status = f'running as process {facts["process"]}'
  text = f'{status}, {facts["finished"]} of {facts["total"]} tasks finished'
  if facts['average_accuracy'] is not None:
    text += f', {percent(facts["average_accuracy"])} average accuracy'
  return text


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
  identity = facts['identity']
  digest = lambda name: str(identity[name])[:12] if identity.get(name) else None
  found = {
    'benchmark': identity.get('benchmark'),
    'split': digest('split_digest'),
    'backbone': ' '.join(filter(None, [identity.get('backbone'), digest('backbone_sha256')])),
    'seed': facts['seed'],
    'training': _pairs(facts['training']),
    'settings': _pairs(facts['settings']),
  }
  return {name: value for name, value in found.items() if value not in (None, '')}


def _pairs(value: Mapping[str, Any]) -> str:
  return ', '.join(
    _pairs(v) if isinstance(v, Mapping) and 'name' not in v else f'{k}={one_line(v)}'
    for k, v in value.items()
    if v is not None
  )


def _checkpoints(facts: Mapping[str, Any]) -> Table:
  table = _table('checkpoint', 'place', 'written', '>bytes', 'state')
  for each in facts['checkpoints']:
    place = f'task {each["task"] + 1}, {each["phase"]} {each["batch"]}' if 'task' in each else ''
    written = each.get('written')
    when = datetime.fromisoformat(written).astimezone().strftime('%F %T') if written else ''
    state = 'damaged' if each['problem'] else 'verified' if each['verified'] else 'readable'
    table.add_row(str(each['tick']), place, when, size(each['bytes']), state)
  for kind in ('unfinished', 'damaged'):
    for name, count in facts[kind].items():
      table.add_row(name, '', '', size(count), 'unfinished' if kind == 'unfinished' else 'aside')
  return table


def _state(facts: Mapping[str, Any]) -> Table:
  table = _table('state', '>leaves', '>bytes', '>share')
  for group in facts['state']:
    cells = str(group['leaves']), size(group['bytes']), percent(group['share'])
    table.add_row(group['name'], *cells)
  if facts['state']:
    total = [sum(group[key] for group in facts['state']) for key in ('leaves', 'bytes')]
    table.add_row('total', str(total[0]), size(total[1]), '')
  return table


def _leaves(facts: Mapping[str, Any]) -> Table:
  table = _table('leaf', 'shape', 'dtype', '>bytes')
  for leaf in facts['leaves']:
    table.add_row(leaf['name'], str(leaf['shape']), leaf['dtype'], size(leaf['bytes']))
  return table


def _files(facts: Mapping[str, Any]) -> Table:
  table = _table('file', '>bytes', '')
  log = facts['log']
  notes = {'metrics.jsonl': f'{log["rows"]} rows: {log["train"]} train, {log["eval"]} eval'}
  for name, count in facts['files'].items():
    table.add_row(name, size(count), notes.get(name, ''))
  table.add_row('total', size(facts['bytes']), '')
  return table


def _table(*titles: str) -> Table:
  table = Table(box=None, pad_edge=False, header_style='bold')
  for title in titles:
    table.add_column(
      title.lstrip('>'), justify='right' if title.startswith('>') else 'left', overflow='fold'
    )
  return table
