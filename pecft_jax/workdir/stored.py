"""One checkpoint on disk: its description, and the check against its digests."""

import errno
import hashlib
import json
import pathlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import jax

from pecft_jax.devices.digest import tree_sha256
from pecft_jax.paths import named_leaves


class Damaged(ValueError):
  """A checkpoint that differs from what was written."""


class Unread(OSError):
  """A checkpoint that could not be read for an outside reason; it may be undamaged."""


# Failures of the file system or of the machine, as Python and as tensorstore and XLA report them.
_OUTSIDE = frozenset({
  errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
  errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.EINTR,
})  # fmt: skip
_STATUSES = ('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')


Leaf = tuple[str, tuple[tuple[int, ...], str]]  # A leaf's path, with its shape and dtype.


class Contents(NamedTuple):
  """The description of a checkpoint.

  Attributes:
    leaves: of the state, in path order of the tree.
    position: of the run, as JSON.
    identity: of the run, as JSON; None where it was saved without.
    state_sha256: of the arrays.
    written: when it was complete.
    tree: the state with its shapes in place of arrays, in plain containers.
  """

  leaves: list[Leaf]
  position: dict[str, Any]
  identity: dict[str, Any] | None
  state_sha256: str
  written: datetime | None
  tree: Any


def read_contents(path: pathlib.Path) -> Contents:
  """Reads the description of a checkpoint, without its arrays.

  Raises:
    Damaged: if it is not what was written.
    Unread: if it cannot be read for another reason, such as missing rights.
  """
  from orbax.checkpoint import v1 as ocp

  try:
    found: Any = ocp.metadata(str(path.absolute()))
    leaves = [leaf_of(leaf) for leaf in named_leaves(found.metadata)]
    meta = found.custom_metadata
    written = meta['leaves_sha256'], meta['position_sha256']
    whole = written == (leaves_sha256(leaves), json_sha256(meta['position']))
    contents = Contents(
      leaves,
      meta['position'],
      meta['identity'],
      meta['state_sha256'],
      found.commit_timestamp,
      found.metadata,
    )
  except Exception as error:  # Whatever a broken file makes orbax raise.
    raise _unreadable(path, error) from error
  if not whole:
    raise Damaged(f'checkpoint {path.name} is damaged: its metadata have another sha256')
  return contents


def verify(path: pathlib.Path) -> None:
  """Reads a checkpoint into host memory, and checks it against its digests.

  Raises:
    Damaged: if it is not what was written.
    Unread: if it cannot be read for another reason.
  """
  read_whole(path, read_contents(path))


def read_whole(path: pathlib.Path, contents: Contents) -> Any:
  """The state of a checkpoint in host memory, in plain containers; keys are their data.

  Args:
    path: of the checkpoint.
    contents: of the checkpoint.

  Raises:
    Damaged: if the arrays are not what was written.
    Unread: if they cannot be read for another reason.
  """
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
  target = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), contents.tree
  )
  return read_arrays(path, target, contents)


def read_arrays(path: pathlib.Path, target: Any, contents: Contents) -> Any:
  """The state of a checkpoint.

  Args:
    path: of the checkpoint.
    target: `jax.ShapeDtypeStruct`s with shardings, in the structure to be returned.
    contents: of the checkpoint.

  Raises:
    Damaged: if the arrays differ from what was written.
    Unread: if they cannot be read for another reason.
  """
  from orbax.checkpoint import v1 as ocp

  try:
    state = ocp.load(str(path.absolute()), target)
  except Exception as error:  # Whatever a broken file makes orbax raise.
    raise _unreadable(path, error) from error
  if tree_sha256(state) != contents.state_sha256:
    raise Damaged(f'checkpoint {path.name} is damaged: its arrays have another sha256')
  return state


def leaf_of(named: tuple[str, Any]) -> Leaf:
  """A leaf as it is stored: keys are stored as their data."""
  name, leaf = named
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return name, (tuple(leaf.shape), str(leaf.dtype))


def leaves_sha256(leaves: Iterable[Leaf]) -> str:
  """Hex digest of paths, shapes and dtypes, in any order."""
  return hashlib.sha256(repr(sorted(leaves)).encode()).hexdigest()


def json_sha256(value: Any) -> str:
  """Hex digest of a JSON value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _unreadable(path: pathlib.Path, error: Exception) -> Damaged | Unread:
  text = first_line(error)
  if _outside(error):
    return Unread(f'checkpoint {path.name} in {path.parent} could not be read: {text}')
  return Damaged(f'checkpoint {path.name} is damaged: {text}')


def _outside(error: BaseException) -> bool:
  """Whether a failure has a cause outside the checkpoint: permissions, memory, a file system."""
  if isinstance(error, MemoryError) or getattr(error, 'errno', None) in _OUTSIDE:
    return True
  if any(status in str(error) for status in _STATUSES):
    return True
  # Orbax reports errors of its threads as a cause, or in an exception group.
  inner = [error.__cause__, *getattr(error, 'exceptions', ())]
  return any(_outside(each) for each in inner if each is not None)


def first_line(error: Exception) -> str:
  """An error of another library on one line, shortened."""
  return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:300]}'
