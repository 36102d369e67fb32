"""`pecft list`, `pecft report` and `pecft inspect`: the commands that only read."""

import json
import pathlib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pecft_jax.commands.failures import quiet_libraries
from pecft_jax.local import local_path


def list_names(kind: str, as_json: bool, console: Console) -> int:
  from pecft_jax.listing import listing

  entries = listing(kind)
  if as_json:
    print(json.dumps(entries, indent=1))
    return 0
  table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
  for name, facts in entries.items():
    papers = ', '.join(f'arXiv:{paper["arxiv"]}' for paper in facts.get('papers', ()))
    row = [f'[bold]{name}', facts.get('family'), facts['summary'], papers]
    table.add_row(*(cell for cell in row if cell is not None))
  console.print(table)
  return 0


def report(
  dirs: Sequence[pathlib.Path], out: pathlib.Path | None, markdown: bool, console: Console
) -> int:
  from pecft_jax.report import (
    comparison_markdown,
    print_run,
    read_run,
    write_comparison,
    write_page,
  )

  if markdown and out is not None:
    raise ValueError('--markdown prints a table, --out names a page: give one of them')
  dirs = [each for path in map(local_path, dirs) for each in _single_runs(path)]
  _check_different(dirs)
  if markdown:
    print(comparison_markdown(dirs))
    return 0
  out = None if out is None else local_path(out)
  if len(dirs) == 1:
    print_run(read_run(dirs[0]), console)
    page = write_page(dirs[0], out)
  else:
    page = write_comparison(dirs, out or pathlib.Path('report.html'))
  console.print(f'report: {page}', highlight=False)
  return 0


def _single_runs(path: pathlib.Path) -> list[pathlib.Path]:
  """The directory itself, or those of all seeds or orders that it holds."""
  from pecft_jax.workdir.claim import read_config
  from pecft_jax.workdir.lanes import places_together

  names = places_together(read_config(path)) if (path / 'config.json').is_file() else []
  return [path / name for name in names] or sorted(path.glob('seed_*')) or [path]


def _check_different(dirs: Sequence[pathlib.Path]) -> None:
  """Raises ValueError for a directory that is named twice: its run would count as two seeds."""
  places = [path.resolve() for path in dirs]
  for path, place in zip(dirs, places, strict=True):
    if places.count(place) > 1:
      raise ValueError(f'{path} is named twice: name each work directory once')


def inspect_directory(
  directory: pathlib.Path, arrays: bool, leaves: bool, as_json: bool, console: Console
) -> int:
  import jax

  from pecft_jax.report.inspected import print_inspected, problems_of
  from pecft_jax.workdir.inspection import inspect_run

  # The inspected run itself may be using the accelerator.
  jax.config.update('jax_platforms', 'cpu')
  with quiet_libraries():
    facts = inspect_run(directory, arrays=arrays)
  if as_json:
    print(json.dumps(facts, indent=1))
  else:
    print_inspected(facts, console, leaves=leaves)
  return 1 if problems_of(facts) else 0
