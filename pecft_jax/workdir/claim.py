"""A work directory: who may write to it, and which configuration it belongs to."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from pecft_jax.files import plain, read_json, write_json


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other processes out of a work directory for as long as this one runs.

  Raises:
    ValueError: if another process has it.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / '.lock', 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip()
      raise ValueError(
        f'{directory} is in use by another process ({holder}); wait for it, or choose another '
        '--workdir'
      ) from error
    file.truncate(0)
    file.write(f'pid {os.getpid()}')
    file.flush()
    yield


def claim(
  directory: pathlib.Path, config: dict[str, Any], command: Mapping[str, Any] | None = None
) -> None:
  """Writes config.json, or holds the one that is there against this run's.

  Args:
    directory: of the run.
    config: what must be the same on resuming.
    command: how the run was started, which need not be; written the first time.

  Raises:
    ValueError: if they differ; names the keys.
  """
  path = directory / 'config.json'
  config = plain(config)
  if not path.exists():
    if (directory / 'checkpoints').exists() or (directory / 'results.json').exists():
      raise ValueError(f'{directory} holds a run without a config.json; choose another --workdir')
    write_json(path, config if command is None else {**config, 'command': plain(command)})
    return
  try:
    there = read_json(path)
  except ValueError as error:
    raise ValueError(f'{error}; choose another --workdir') from error
  there.pop('command', None)
  differing = sorted(_differences(path.name, there, config))
  if differing:
    raise ValueError(
      f'{directory} belongs to a run with another configuration; '
      + '; '.join(differing)
      + '. Choose another --workdir, or the same flags to resume'
    )


def read_config(directory: pathlib.Path) -> dict[str, Any]:
  """What a run wrote to config.json. Raises ValueError if there is none, or it is damaged."""
  try:
    return read_json(directory / 'config.json')
  except OSError as error:
    raise ValueError(f'{directory} is no work directory of a run: {error}') from error


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
  if isinstance(there, dict) and isinstance(here, dict):
    for key in there.keys() | here.keys():
      yield from _differences(f'{name}.{key}', there.get(key), here.get(key))
  elif there != here:
    short = lambda value: text if len(text := json.dumps(value)) < 60 else text[:57] + '…'
    yield f'{name}: there {short(there)}, here {short(here)}'
