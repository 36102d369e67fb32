"""Checkpoints: the train state and the position of the run, in one orbax directory.

The frozen backbone is not copied; the identity of the run names it. Each
checkpoint carries digests of all it holds, so that damage of any kind is
found on reading, and the one before is used.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from pecft_jax.paths import named_leaves
from pecft_jax.train.position import Position
from pecft_jax.train.processes import barrier, is_first
from pecft_jax.train.state import tree_sha256
from pecft_jax.typing import TrainState

# What a killed process was writing or deleting.
_UNFINISHED = r'\d+\.(orbax-checkpoint-tmp.*|deleted|branching)'


class Damaged(ValueError):
  """A checkpoint that cannot be read back as it was written."""


class Checkpoints:
  """The checkpoints of one work directory, numbered by the ticks of the run."""

  def __init__(
    self,
    directory: pathlib.Path,
    keep: int = 2,
    identity: dict[str, Any] | None = None,
    *,
    keep_tasks: bool = False,
    opened_to_read: bool = False,
  ):
    """Opens a directory, made if need be.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest stay.
      identity: the run's, as JSON; written into each checkpoint, so that one that
        is found alone tells which backbone and which split it belongs to.
      keep_tasks: whether those made after a task stay, too.
      opened_to_read: leave everything there as it is: another process may be
        writing.
    """
    self._directory, self._keep, self._identity = directory.absolute(), keep, identity
    self._keep_tasks = keep_tasks
    self._boundaries: dict[int, bool] = {}
    self._pending: Any = None
    if not opened_to_read:
      if is_first():
        self._directory.mkdir(parents=True, exist_ok=True)
        self._clear()
      barrier('checkpoints opened')

  def _clear(self) -> None:
    for path in self._directory.iterdir():
      if re.fullmatch(_UNFINISHED, path.name):
        shutil.rmtree(path)

  def save(self, tick: int, state: TrainState, position: Position) -> None:
    """Starts writing; returns once the state may be changed again.

    Args:
      tick: number of the checkpoint, above all before.
      state: copied on its devices before it is written.
      position: of the run.
    """
    self.wait()
    # On the CPU a write may read the very buffers that the next step donates.
    state = jax.tree.map(jnp.copy, state)
    place = position.to_json()
    meta = {
      'position': place,
      'position_sha256': _json_sha256(place),
      'leaves_sha256': _leaves_sha256(_stored(leaf) for leaf in named_leaves(state)),
      'state_sha256': tree_sha256(state),
      'identity': self._identity,
    }
    self._pending = ocp.save_async(self._at(tick), state, custom_metadata=meta)

  def wait(self) -> None:
    """Waits for the write under way, and raises what went wrong in it.

    Only now that it is complete, checkpoints beyond the number to keep go.
    """
    if self._pending is None:
      return
    pending, self._pending = self._pending, None
    pending.result()
    if not is_first():
      return
    for tick in self.ticks()[: -self._keep]:
      if self._keep_tasks and self._after_task(tick):
        continue
      # Renamed first, so that what is left of it after a kill is no checkpoint.
      going = self._at(tick).rename(self._directory / f'{tick}.deleted')
      shutil.rmtree(going)

  def _after_task(self, tick: int) -> bool:
    if tick not in self._boundaries:
      position = self.position(tick)
      self._boundaries[tick] = position is not None and position.at_boundary()
    return self._boundaries[tick]

  def position(self, tick: int) -> Position | None:
    """Where the run was, by a checkpoint's metadata alone; None where they cannot be read."""
    meta = self._metadata(tick)
    return None if meta is None else Position.from_json(meta['position'])

  def identity(self, tick: int) -> dict[str, Any] | None:
    """The identity that is written into a checkpoint; None where it cannot be read."""
    meta = self._metadata(tick)
    return None if meta is None else meta['identity']

  def _metadata(self, tick: int) -> dict[str, Any] | None:
    try:
      meta: Any = ocp.metadata(self._at(tick)).custom_metadata
      return meta if meta['position_sha256'] == _json_sha256(meta['position']) else None
    except Exception:  # Whatever a broken file makes orbax raise.
      return None

  def ticks(self) -> list[int]:
    """Numbers of the checkpoints there are, oldest first."""
    return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

  def _at(self, tick: int) -> Any:  # A pathlib.Path, which orbax's own type is not.
    return self._directory / str(tick)

  def newest(
    self, like: Any, shardings: Any, tell: Callable[[str], None]
  ) -> tuple[TrainState, Position] | None:
    """The newest good checkpoint, or None where there is none.

    Damaged ones that are newer are moved to `damaged/` beside the checkpoints:
    the run will come to their ticks again.

    Args:
      like: the state, or its shapes.
      shardings: of its leaves.
      tell: told of each damaged checkpoint.

    Raises:
      ValueError: if a checkpoint holds another structure, shape or dtype.
    """
    damaged, found = [], None
    for tick in reversed(self.ticks()):
      try:
        found = self.load(tick, like, shardings)
        break
      except Damaged as error:
        tell(f'{error}; going back to the one before it')
        damaged.append(tick)
    for tick in damaged if is_first() else ():
      _move_aside(self._at(tick), self._directory.parent / 'damaged')
    barrier('checkpoints read')
    return found

  def load(self, tick: int, like: Any, shardings: Any) -> tuple[TrainState, Position]:
    """Reads a checkpoint onto devices, whatever devices it was written from.

    Args:
      tick: its number.
      like: the state, or its shapes.
      shardings: of its leaves.

    Raises:
      ValueError: if it holds another structure, shape or dtype.
      Damaged: if it cannot be read, or its content is not what was written.
    """
    try:
      found = ocp.metadata(self._at(tick))
      leaves = [_stored(leaf) for leaf in named_leaves(found.metadata)]
      meta: Any = found.custom_metadata
      written = meta['leaves_sha256'], meta['position_sha256']
      whole = written == (_leaves_sha256(leaves), _json_sha256(meta['position']))
    except Exception as error:  # Whatever a broken file makes orbax raise.
      raise _unreadable(tick, error) from error
    if not whole:
      raise Damaged(f'checkpoint {tick} is damaged: its metadata have another sha256')
    _check_leaves(tick, dict(map(_stored, named_leaves(like))), dict(leaves))
    target = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      like,
      shardings,
    )
    try:
      state = ocp.load(self._at(tick), target)
    except Exception as error:  # As above.
      raise _unreadable(tick, error) from error
    if tree_sha256(state) != meta['state_sha256']:
      raise Damaged(f'checkpoint {tick} is damaged: its arrays have another sha256')
    # Of equal arrays, but not of equal shardings in the eyes of jit, which would compile anew.
    return jax.device_put(state, shardings), Position.from_json(meta['position'])


Card = tuple[str, tuple[tuple[int, ...], str]]  # A leaf's path, with its shape and dtype.


def _stored(named: tuple[str, Any]) -> Card:
  """What a leaf is on disk: keys are stored as their data."""
  name, leaf = named
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return name, (tuple(leaf.shape), str(leaf.dtype))


def _check_leaves(tick: int, expected: dict[str, Any], stored: dict[str, Any]) -> None:
  """Holds a stored tree against the expected one; orbax would cast dtypes silently."""
  differing = [
    f'{name}: expected {expected.get(name, "nothing")}, stored {stored.get(name, "nothing")}'
    for name in sorted(expected.keys() | stored.keys())
    if expected.get(name) != stored.get(name)
  ]
  if differing:
    raise ValueError(
      f'checkpoint {tick} is of another run; leaves (shape, dtype) that differ: '
      + '; '.join(differing[:8])
      + (f'; and {len(differing) - 8} more' if len(differing) > 8 else '')
    )


def _leaves_sha256(leaves: Iterable[Card]) -> str:
  return hashlib.sha256(repr(sorted(leaves)).encode()).hexdigest()


def _json_sha256(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _unreadable(tick: int, error: Exception) -> Damaged:
  lines = str(error).splitlines() or ['']
  return Damaged(f'checkpoint {tick} cannot be read: {type(error).__name__}: {lines[0][:200]}')


def _move_aside(path: pathlib.Path, to: pathlib.Path) -> None:
  to.mkdir(exist_ok=True)
  names = (path.name, *(f'{path.name}.{i}' for i in range(1, 10_000)))
  os.rename(path, next(to / name for name in names if not (to / name).exists()))
