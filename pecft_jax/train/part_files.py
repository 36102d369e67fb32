"""Parts on disk, for runs that are resumed: a cache, which may be deleted at any time."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable

from pecft_jax.train.room import Room

_DIGEST = 32  # Bytes of a sha256.


class PartFiles:
  """Files of bytes by name, in a directory of their own, up to a bound.

  Each begins with a digest of its name and its contents: one that is damaged, or has another's
  name, is removed instead of read. Nothing waits for the disk, as what is lost is computed again.
  """

  def __init__(self, directory: pathlib.Path, limit: float, tell: Callable[[str], None]):
    """Takes over the files that are there.

    Args:
      directory: made with the first file.
      limit: bytes, of all files together.
      tell: called, once, with a warning if a file cannot be written; no more are then.
    """
    self._directory, self._tell, self._writing = directory, tell, limit > 0
    self._room = Room(limit, lambda name: _remove(self._path(name)))
    self.turn, self.use = self._room.turn, self._room.use
    there = sorted(directory.glob('*')) if directory.is_dir() else []
    for path in there:
      if path.suffix or not self._room.take(path.name, path.stat().st_size):
        _remove(path)

  def get(self, name: str) -> bytes | None:
    """The contents of an entry; None where it is not there, or damaged."""
    if name not in self._room:
      return None
    self._room.use(name)
    try:
      raw = self._path(name).read_bytes()
    except OSError:
      raw = b''
    if raw[:_DIGEST] != _digest(name, raw[_DIGEST:]):
      self._room.remove(name)
      return None
    return raw[_DIGEST:]

  def put(self, name: str, contents: bytes) -> None:
    """Writes an entry, where there is room for it."""
    if not self._writing or name in self._room:
      return
    if not self._room.take(name, _DIGEST + len(contents)):
      return
    path = self._path(name)
    part = path.with_suffix('.part')
    try:
      path.parent.mkdir(exist_ok=True)
      with open(part, 'wb') as file:
        file.write(_digest(name, contents))
        file.write(contents)
      os.replace(part, path)
    except OSError as error:
      self._writing = False
      _remove(part)
      self._room.remove(name)
      self._tell(f'parts of predictions are not kept on disk any more: {error}')

  def _path(self, name: str) -> pathlib.Path:
    return self._directory / name


def _remove(path: pathlib.Path) -> None:
  """Removes a file that is there and can be removed."""
  with contextlib.suppress(OSError):
    path.unlink()


def _digest(name: str, contents: bytes) -> bytes:
  digest = hashlib.sha256(name.encode())
  digest.update(contents)
  return digest.digest()
