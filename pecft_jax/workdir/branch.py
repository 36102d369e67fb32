"""A new run that starts from a checkpoint of another run, with other settings."""

import json
import pathlib
import shutil
from typing import Any, NamedTuple

from pecft_jax.files import plain, read_rows, replace_text
from pecft_jax.local import work_directory
from pecft_jax.workdir.position import Position
from pecft_jax.workdir.stored import Contents, read_contents


class Branch(NamedTuple):
  """Where a run starts from.

  Attributes:
    source: work directory of the run that it starts from.
    after_task: number of tasks that are shared, from 1.
  """

  source: pathlib.Path
  after_task: int

  def to_json(self) -> dict[str, Any]:
    """For the configuration of the new run."""
    return {'source': str(self.source), 'after_task': self.after_task}


def find_branch(
  branch: Branch, identity: dict[str, Any], directory: pathlib.Path, places: tuple[str, ...]
) -> int | None:
  """The checkpoint to start from; None where the new run has begun already.

  Args:
    branch: where from.
    identity: of the new run, which must be the source's.
    directory: of the new run.
    places: of the seeds' logs in a work directory, in both.

  Raises:
    ValueError: if the source has no such checkpoint or another identity, or is the new run's own
      directory.
  """
  source = work_directory(branch.source)
  there = source / 'checkpoints'
  if _checkpoints(directory / 'checkpoints'):
    return None
  if source.resolve() == directory.resolve():
    raise ValueError(f'a run cannot branch from its own directory {directory}')
  if not there.is_dir():
    raise ValueError(f'{branch.source} holds no checkpoints to branch from')
  tick, found = find_after(source, branch.after_task)
  check_identity(source, found.identity or {}, plain(identity))
  seeds = Position.from_json(found.position).seeds
  if len(seeds) != len(places):
    raise ValueError(f'{branch.source} has {len(seeds)} seeds in a program, this run {len(places)}')
  return tick


def find_after(directory: pathlib.Path, tasks: int | None) -> tuple[int, Contents]:
  """The checkpoint after a number of tasks: its tick and its description.

  Args:
    directory: of a run.
    tasks: from 1; the most there are if None.

  Raises:
    ValueError: if there is none.
    Damaged: if one differs from what was written.
    Unread: if one could not be read for another reason.
  """
  found = {int(path.name): read_contents(path) for path in _checkpoints(directory / 'checkpoints')}
  positions = {tick: Position.from_json(each.position) for tick, each in found.items()}
  ends = {at.task + 1: tick for tick, at in positions.items() if at.at_boundary()}
  if not ends:
    raise ValueError(f'{directory} has no checkpoint after a task yet: let it run that far')
  tasks = max(ends) if tasks is None else tasks
  if tasks not in ends:
    raise ValueError(
      f'{directory} has no checkpoint after task {tasks}; there are some after '
      f'{sorted(ends)}; a run with --keep-tasks keeps all'
    )
  return ends[tasks], found[ends[tasks]]


def copy_branch(
  branch: Branch, tick: int, directory: pathlib.Path, places: tuple[str, ...]
) -> None:
  """Copies the checkpoint that `find_branch` found, and the logs up to there."""
  source = work_directory(branch.source)
  there, here = source / 'checkpoints', directory / 'checkpoints'
  position = Position.from_json(read_contents(there / str(tick)).position)
  for place, found in zip(places, position.seeds, strict=True):
    kept = read_rows(source / place / 'metrics.jsonl')[: found.rows]
    replace_text(directory / place / 'metrics.jsonl', ''.join(f'{row.line}\n' for row in kept))
  # Under another name first, so that a checkpoint under its own name is always complete.
  here.mkdir(exist_ok=True)
  part = here / f'{tick}.branching'
  shutil.rmtree(part, ignore_errors=True)
  shutil.copytree(there / str(tick), part)
  part.rename(here / str(tick))


def _checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in directory.glob('*') if path.name.isdigit()]


def check_identity(source: pathlib.Path, there: dict[str, Any], here: dict[str, Any]) -> None:
  """Raises ValueError where the identity of a run differs from that of a directory."""
  differing = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
  if differing:
    shown = [f'{k}: there {json.dumps(there.get(k))[:60]}, here {json.dumps(here.get(k))[:60]}'
             for k in differing]  # fmt: skip
    raise ValueError(f'{source} learns something else than this run; {"; ".join(shown)}')
