"""Checkpoints: the train state and the position of the run, in one orbax directory.

The frozen backbone is not copied; the identity of the run names it. Each
checkpoint carries digests of all it holds, so that damage of any kind is
found on reading, and the one before is used.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from pecft_jax.devices.digest import tree_sha256
from pecft_jax.devices.processes import barrier, is_first
from pecft_jax.paths import named_leaves
from pecft_jax.typing import TrainState
from pecft_jax.workdir.position import Position
from pecft_jax.workdir.stored import (
  Damaged,
  first_line,
  json_sha256,
  leaf_of,
  leaves_sha256,
  read_arrays,
  read_contents,
)

# Directories that a killed process was writing or deleting.
UNFINISHED = r'\d+\.(orbax-checkpoint-tmp.*|deleted|branching)'

# Bytes of a leaf's slice from which on its replicas are written in parts, one by each device.
_SHARED = 2**20


class NotSaved(OSError):
  """A checkpoint that could not be written; those before it are as they were."""


class Checkpoints:
  """The checkpoints of one work directory, numbered by the ticks of the run."""

  def __init__(
    self,
    directory: pathlib.Path,
    keep: int = 2,
    identity: dict[str, Any] | None = None,
    *,
    keep_tasks: bool = False,
  ):
    """Opens a directory, made if it does not exist.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest stay.
      identity: the run's, as JSON; written into each checkpoint, so that a lone checkpoint says
        which backbone and which split it belongs to.
      keep_tasks: whether those made after a task stay, too.
    """
    self._directory, self._keep, self._identity = directory.absolute(), keep, identity
    self._keep_tasks = keep_tasks
    self._boundaries: dict[int, bool] = {}
    self._pending: Any = None
    self._thread = ThreadPoolExecutor(1, 'checkpoint')
    if is_first():
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in self._directory.iterdir():
        if re.fullmatch(UNFINISHED, path.name):
          shutil.rmtree(path)
    barrier('checkpoints opened')

  def save(self, tick: int, state: TrainState, position: Position) -> None:
    """Starts writing; returns once the state may be changed again.

    The digest and the write are made by a thread. In a job of several processes the digest is made
    here: gathering the parts of a leaf is a step of all processes, which come in one order.

    Args:
      tick: number of the checkpoint, above all before.
      state: copied on its devices before it is written.
      position: of the run.
    """
    self.wait()
    # On the CPU a write may read the very buffers that the next step donates.
    state = _copied(state)
    place = position.to_json()
    if jax.process_count() > 1:
      self._pending = tick, self._start(tick, state, place)
    else:
      self._pending = tick, self._thread.submit(lambda: self._start(tick, state, place).result())

  def _start(self, tick: int, state: TrainState, place: dict[str, Any]) -> Any:
    """Starts a write, once the digest is made; returns what waits for its end."""
    from orbax.checkpoint import v1 as ocp

    meta = {
      'position': place,
      'position_sha256': json_sha256(place),
      'leaves_sha256': leaves_sha256(leaf_of(leaf) for leaf in named_leaves(state)),
      'state_sha256': tree_sha256(state),
      'identity': self._identity,
    }
    context = ocp.Context()
    # Loading gives its own shardings, and stored ones are larger than a small state.
    context.array.saving.enable_write_sharding_file = False
    # Where a leaf is replicated, devices share the writing; each slice takes a program of its own.
    context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED
    with context:
      return ocp.save_async(self._at(tick), state, custom_metadata=meta)

  def wait(self) -> None:
    """Waits for the write under way.

    Old checkpoints beyond the number to keep are deleted only once it is complete.

    Raises:
      NotSaved: if it failed, on a full disk for example.
    """
    if self._pending is None:
      return
    (number, pending), self._pending = self._pending, None
    try:
      pending.result()
    except Exception as error:  # Python and tensorstore differ in its type.
      raise NotSaved(self._not_saved(number, error)) from error
    if not is_first():
      return
    for tick in self.ticks()[: -self._keep]:
      if self._keep_tasks and self._after_task(tick):
        continue
      # Renamed first, so that the rest of it after a kill does not count as a checkpoint.
      going = self._at(tick).rename(self._directory / f'{tick}.deleted')
      shutil.rmtree(going)

  def _after_task(self, tick: int) -> bool:
    if tick not in self._boundaries:
      position = Position.from_json(read_contents(self._at(tick)).position)
      self._boundaries[tick] = position.at_boundary()
    return self._boundaries[tick]

  def ticks(self) -> list[int]:
    """Numbers of the checkpoints there are, oldest first."""
    return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

  def _at(self, tick: int) -> Any:  # A pathlib.Path, which orbax's own type is not.
    return self._directory / str(tick)

  def newest(
    self, like: Any, shardings: Any, tell: Callable[[str], None]
  ) -> tuple[TrainState, Position] | None:
    """The newest good checkpoint, or None where there is no checkpoint at all.

    Damaged ones that are newer are moved to `damaged/` beside the checkpoints:
    the run will reach their ticks again.

    Args:
      like: the state, or its shapes.
      shardings: of its leaves.
      tell: called with each damaged checkpoint.

    Raises:
      ValueError: if a checkpoint holds another structure, shape or dtype.
      Damaged: if there are checkpoints, but none is good; none is moved then.
      Unread: if one could not be read for a reason outside of it; none is moved then.
    """
    damaged: dict[int, Damaged] = {}
    for tick in reversed(self.ticks()):
      try:
        found = self.load(tick, like, shardings)
      except Damaged as error:
        damaged[tick] = error
        continue
      for number, error in damaged.items() if is_first() else ():
        tell(f'{error}; going back to checkpoint {tick}')
        _move_aside(self._at(number), self._directory.parent / 'damaged')
      barrier('checkpoint read')
      return found
    if damaged:
      raise Damaged(
        f'no checkpoint in {self._directory} is good: {"; ".join(map(str, damaged.values()))}. '
        'All is left as it was: bring a good one back from a copy, or choose another --workdir'
      )
    return None

  def load(self, tick: int, like: Any, shardings: Any) -> tuple[TrainState, Position]:
    """Reads a checkpoint onto devices, whatever devices it was written from.

    Args:
      tick: its number.
      like: the state, or its shapes.
      shardings: of its leaves.

    Raises:
      ValueError: if it holds another structure, shape or dtype.
      Damaged: if its content differs from what was written.
      Unread: if it could not be read for a reason outside of it.
    """
    return read_checkpoint(self._at(tick), like, shardings)

  def _not_saved(self, tick: int, error: Exception) -> str:
    there = self.ticks()
    resumes = f'from checkpoint {there[-1]}' if there else 'from the beginning'
    free = shutil.disk_usage(self._directory).free
    return (
      f'checkpoint {tick} could not be written to {self._directory}: {first_line(error)} '
      f'({free:,} bytes are free there). Nothing before it is lost: once there is room, the same '
      f'command resumes {resumes}'
    )


def _copied(state: TrainState) -> TrainState:
  """A copy on its devices; of one process, it is made without compiling a copy of each shape."""
  if jax.process_count() > 1:
    return jax.tree.map(jnp.copy, state)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.device_put(state, shardings, may_alias=False)


def read_checkpoint(path: pathlib.Path, like: Any, shardings: Any) -> tuple[TrainState, Position]:
  """`Checkpoints.load` of the directory of one checkpoint; changes nothing beside it."""
  contents = read_contents(path)
  check_leaves(
    f'checkpoint {path.name}', dict(map(leaf_of, named_leaves(like))), dict(contents.leaves)
  )
  target = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    like,
    shardings,
  )
  state = read_arrays(path, target, contents)
  # The arrays are equal, but jit sees other shardings and would compile again.
  return jax.device_put(state, shardings), Position.from_json(contents.position)


def check_leaves(what: str, expected: dict[str, Any], stored: dict[str, Any]) -> None:
  """Checks a stored tree against the expected one; orbax would cast dtypes silently.

  Args:
    what: holds the stored one, for messages.
    expected: shapes and dtypes by path, as `leaf_of` gives them.
    stored: the same of what is stored.

  Raises:
    ValueError: if they differ; names the first leaves.
  """
  differing = [
    f'{name}: expected {expected.get(name, "nothing")}, stored {stored.get(name, "nothing")}'
    for name in sorted(expected.keys() | stored.keys())
    if expected.get(name) != stored.get(name)
  ]
  if differing:
    raise ValueError(
      f'{what} is of another run; leaves (shape, dtype) that differ: '
      + '; '.join(differing[:8])
      + (f'; and {len(differing) - 8} more' if len(differing) > 8 else '')
    )


def _move_aside(path: pathlib.Path, to: pathlib.Path) -> None:
  to.mkdir(exist_ok=True)
  names = (path.name, *(f'{path.name}.{i}' for i in range(1, 10_000)))
  os.rename(path, next(to / name for name in names if not (to / name).exists()))
