"""Parts of predictions that evaluations keep: in memory up to a bound, and on disk for resuming.

What is kept is found by a digest of all that it was computed from, so it is either the very same
or not found. It is part of no checkpoint, and without it a run gives the same bits.
"""

import hashlib
import math
from typing import Any

import jax
import numpy as np

from pecft_jax.train.part_files import PartFiles
from pecft_jax.train.room import Room

Where = tuple[tuple[int, int], ...]  # The first row and the end, along each axis.
Pieces = dict[Where, np.ndarray]  # What this process's devices have of an array.


class Kept:
  """Parts by name. Each process keeps the rows of its own devices; nothing is gathered."""

  def __init__(self, identity: str, limit: float, files: PartFiles | None = None):
    """Starts with what is on disk.

    Args:
      identity: digest of what all parts of a run share: weights, method, data, devices.
      limit: bytes in this process's memory.
      files: None for memory alone.
    """
    self._identity, self._files = identity, files
    self._parts: dict[str, list[Pieces]] = {}
    self._room = Room(limit, self._parts.pop)
    self._fresh: list[tuple[str, Any]] = []
    self._older: list[tuple[str, Any]] = []
    self._known: set[bytes] = set()

  def name(self, weights: np.ndarray, rows: bytes) -> str:
    """The name of a part.

    Args:
      weights: fingerprint of what it reads, of each seed.
      rows: the examples of the batch.
    """
    digest = hashlib.sha256(self._identity.encode())
    digest.update(np.ascontiguousarray(weights).tobytes())
    digest.update(rows)
    return digest.hexdigest()

  def turn(self) -> None:
    """A further evaluation begins."""
    self._room.turn()
    if self._files is not None:
      self._files.turn()

  def is_known(self, weights: np.ndarray) -> bool:
    """Whether these weights were looked at before: those in training are not, twice."""
    name = np.ascontiguousarray(weights).tobytes()
    known = name in self._known
    self._known.add(name)
    return known

  def get(self, name: str, like: Any) -> Any:
    """A part on its devices; None where it is not kept.

    Args:
      name: of the part.
      like: a tree of `jax.ShapeDtypeStruct`s with shardings.
    """
    leaves, form = jax.tree.flatten(like)
    if name not in self._parts:
      raw = self._files.get(name) if self._files is not None else None
      found = None if raw is None else _from_bytes(raw, leaves)
      if found is None:
        return None
      if self._room.take(name, _bytes(found)):
        self._parts[name] = found
    else:
      found = self._parts[name]
      self._room.use(name)
      if self._files is not None:
        self._files.use(name)
    return jax.tree.unflatten(form, [_put(*each) for each in zip(found, leaves, strict=True)])

  def put(self, name: str, part: Any) -> None:
    """Keeps a part, once it has arrived from the devices: `settle` waits for it."""
    for leaf in jax.tree.leaves(part):
      leaf.copy_to_host_async()
    self._fresh.append((name, part))

  def settle(self, *, every: bool = False) -> None:
    """Takes what was put before the last call, so that no batch waits for its own; or all."""
    due = [*self._older, *self._fresh] if every else self._older
    self._older, self._fresh = [] if every else self._fresh, []
    for name, part in due:
      found = [_pieces(leaf) for leaf in jax.tree.leaves(part)]
      if self._room.take(name, _bytes(found)):
        self._parts[name] = found
      if self._files is not None:
        self._files.put(name, _to_bytes(found))


def _pieces(leaf: jax.Array) -> Pieces:
  """What this process's devices have of an array; copies of one piece once."""
  found: Pieces = {}
  for shard in leaf.addressable_shards:
    where = _where(shard.index, leaf.shape)
    if where not in found:
      found[where] = np.asarray(shard.data)
  return found


def _put(pieces: Pieces, like: Any) -> jax.Array:
  """The array of which there are pieces."""
  take = lambda index: pieces[_where(index, like.shape)]
  return jax.make_array_from_callback(like.shape, like.sharding, take)


def _where(index: tuple[slice, ...], shape: tuple[int, ...]) -> Where:
  return tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))


def _bytes(found: list[Pieces]) -> int:
  return sum(piece.nbytes for pieces in found for piece in pieces.values())


def _to_bytes(found: list[Pieces]) -> bytes:
  return b''.join(pieces[where].tobytes() for pieces in found for where in sorted(pieces))


def _from_bytes(raw: bytes, leaves: list[Any]) -> list[Pieces] | None:
  """The inverse of `_to_bytes`; None for another number of bytes."""
  found: list[Pieces] = []
  start = 0
  for leaf in leaves:
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    pieces: Pieces = {}
    for where in sorted({_where(index, leaf.shape) for index in indices}):
      shape = tuple(end - first for first, end in where)
      size = math.prod(shape) * leaf.dtype.itemsize
      part = raw[start : start + size]
      if len(part) < size:
        return None
      pieces[where] = np.frombuffer(part, leaf.dtype).reshape(shape)
      start += size
    found.append(pieces)
  return found if start == len(raw) else None
