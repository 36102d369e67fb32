"""Several processes as one job: joining it, deciding together, and ending together.

Every process runs the same program on its share of each batch. What is written
to the work directory is written by the first process, except checkpoints,
to which each adds the arrays on its devices. A single process is a job of one, at no cost.
"""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_MESSAGE_BYTES = 4096
# Seconds without a heartbeat after which a process counts as dead, and the job ends.
HEARTBEAT_SECONDS = 25
# Seconds between two agreements of all processes on saving and stopping.
_ASKING_SECONDS = 1.0


def join(
  coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
  """Makes this process part of a job; call it before anything is computed.

  Args:
    coordinator: `HOST:PORT` of process 0. `auto` has JAX find the job in the
      environment: Cloud TPU, GKE, SLURM, Open MPI. None: this process is the job.
    processes: how many there are; found in the environment where None.
    process_id: of this one, from 0; likewise.

  Raises:
    ValueError: if the environment does not say what is missing, or the parts
      do not fit together.
  """
  if coordinator is None:
    if processes is not None or process_id is not None:
      raise ValueError(
        'the number of processes and the id of this one need a coordinator: give '
        'HOST:PORT of process 0, or auto'
      )
    return
  if processes is not None and not 0 <= (process_id or 0) < processes:
    raise ValueError(f'expected ids of processes in 0..{processes - 1}, got {process_id}')
  auto = coordinator == 'auto'
  if not auto and not coordinator.rpartition(':')[2].isdigit():
    raise ValueError(f'expected a coordinator as HOST:PORT, or auto, got {coordinator!r}')
  try:
    jax.distributed.initialize(
      None if auto else coordinator,
      processes,
      process_id,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'cannot join a job: {error} Under Cloud TPU, GKE, SLURM or Open MPI the coordinator auto '
      'finds all; elsewhere give its HOST:PORT, the number of processes, and the id of this one'
    ) from error


def is_first() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns once all processes have called it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first_only(action: Callable[[], Any]) -> None:
  """Runs an action in the first process; all go on once it is done.

  Raises:
    ValueError: in every process, if it raised one in the first.
  """
  if jax.process_count() == 1:
    action()
    return
  failed: ValueError | None = None
  if is_first():
    try:
      action()
    except ValueError as error:
      failed = error
  text = str(failed or '').encode()[:_MESSAGE_BYTES]
  message = np.zeros(_MESSAGE_BYTES, np.uint8)
  message[: len(text)] = np.frombuffer(text, np.uint8)
  told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message)).tobytes()).rstrip(b'\0')
  if failed is not None:
    raise failed
  if told:
    raise ValueError(told.decode(errors='replace'))


def agreement() -> Callable[[int, bool, bool], tuple[bool, bool]]:
  """How processes agree on when to stop and to save: `(tick, stop, save) -> (stop, save)`.

  A signal reaches processes at different moments, or just one of them, and
  clocks differ; yet all must leave the loop, or write their part of a
  checkpoint, after the same batch. They communicate about once a second: the first process says how
  many ticks that is. A single process decides at once.
  """
  if jax.process_count() == 1:
    return lambda tick, stop, save: (stop, save)
  asked, last_tick, last_time = -1, 0, time.monotonic()

  def ask(tick: int, stop: bool, save: bool) -> tuple[bool, bool]:
    nonlocal asked, last_tick, last_time
    if tick < asked:
      return False, False
    now = time.monotonic()
    rate = max(1, tick - last_tick) / max(1e-3, now - last_time)
    wait = int(np.clip(rate * _ASKING_SECONDS, 1, 1000))
    said = multihost_utils.process_allgather(np.array([stop, save, wait], np.int32))
    asked, last_tick, last_time = tick + int(said[0, 2]), tick, now
    return bool(said[:, 0].any()), bool(said[:, 1].any())

  return ask


def whole(leaf: Any) -> np.ndarray:
  """An array in this process's memory; one that is sharded over processes is gathered first."""
  if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
    leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


@contextlib.contextmanager
def ending_together(
  unless: type[Exception], words: Callable[[BaseException], str | None] = lambda error: None
) -> Iterator[None]:
  """Ends a process of a job at once if it fails, so that the others notice; alone, just raises.

  A normal exit would wait for the others, which may be waiting for this one.

  Args:
    unless: an exception that all processes raise together.
    words: what to say of an error, as `error: ...`; None shows its traceback.
  """
  try:
    yield
  except (Exception, KeyboardInterrupt, SystemExit) as error:
    if jax.process_count() == 1 or isinstance(error, unless):
      raise
    text = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
      text = f'work with the others broke off, most likely as one was lost: {text.splitlines()[0]}'
    elif (said := words(error)) is not None:
      text = said.removeprefix('error: ')
    else:
      traceback.print_exc()
    print(
      f'error: process {jax.process_index()} of {jax.process_count()}: '
      + text
      + '\nAll that was saved stays: start every process again with the same command to resume.',
      file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
