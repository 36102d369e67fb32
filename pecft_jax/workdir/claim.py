"""A work directory: who may write to it, and which configuration it belongs to."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from pecft_jax.environment import changes, environment, now
from pecft_jax.files import plain, read_json, write_json
from pecft_jax.settings import one_line

# Parts of config.json that need not be the same on resuming.
_BESIDE = (
  'command', 'files', 'environment', 'resumed', 'accepted', 'class_names', 'weights',
)  # fmt: skip
_ACCEPT = '--accept-changes if what was changed has no part in what is computed'
_MOST = 12  # Differences in one message.


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
  directory: pathlib.Path,
  config: dict[str, Any],
  command: Mapping[str, Any] | None = None,
  *,
  files: Mapping[str, str] | None = None,
  facts: Mapping[str, Any] | None = None,
  accept_changes: bool = False,
) -> list[str]:
  """Writes config.json, or checks the one that is there against this run's.

  Besides the configuration, which must be the same on resuming, config.json has `command`,
  `files`, `environment` (with the time of the first start), `resumed` (each start in another
  environment than the one before) and `accepted` (changes of files that were accepted).

  Args:
    directory: of the run.
    config: the settings that must be the same on resuming.
    command: how the run was started, which need not be; written the first time.
    files: digests of the files that made the experiment, by name.
    facts: what using the run needs besides its configuration: `class_names`, and where the
      `weights` are; written the first time.
    accept_changes: go on where files are others than they were, and record it.

  Returns:
    Notes about a run that resumes: another environment, or files that were changed.

  Raises:
    ValueError: if the configuration or the files differ; names the keys.
  """
  path = directory / 'config.json'
  config = plain(config)
  here = {**environment(), 'started': now()}
  if not path.exists():
    if (directory / 'checkpoints').exists() or (directory / 'results.json').exists():
      raise ValueError(f'{directory} holds a run without a config.json; choose another --workdir')
    beside = {'command': command, 'files': files or None, 'environment': here, **(facts or {})}
    write_json(path, {**config, **{k: plain(v) for k, v in beside.items() if v is not None}})
    return []
  there = _read(path)
  check_config(path, there, config)
  new, notes = dict(there), []
  changed = changed_files(there.get('files') or {}, files or {})
  if changed:
    if not accept_changes:
      raise ValueError(f'{directory}: {files_message(changed)}; choose another --workdir, or '
                       f'{_ACCEPT}')  # fmt: skip
    accepted = {'date': here['started'], 'files': changed}
    new |= {'files': dict(files or {}), 'accepted': [*(there.get('accepted') or []), accepted]}
    notes.append(f'goes on although {files_message(changed)}')
  resumed = list(there.get('resumed') or [])
  last = resumed[-1] if resumed else there.get('environment')
  if isinstance(last, dict) and (moved := changes(last, here)):
    new['resumed'] = [*resumed, here]
    notes.append(f'resumed in another environment: {", ".join(moved)}')
  if new != there:
    write_json(path, new)
  return notes


def ran_in(directory: pathlib.Path, *, done: bool) -> dict[str, Any]:
  """The environment of a run for results.json: as it is, and when the run started and ended.

  That of a run that has ended stays as it was. `resumed` lists the environments that it was
  resumed in: times are then not those of one machine.

  Args:
    directory: of the run, with its config.json.
    done: whether the run has ended.
  """
  results = directory / 'results.json'
  before: Any = {}
  if done and results.exists():
    with contextlib.suppress(ValueError):  # A damaged file is written again.
      before = _read(results)
  if before.get('status') == 'done' and 'environment' in before:
    return before['environment']
  config = _read(directory / 'config.json')
  return {
    **environment(),
    'started': (config.get('environment') or {}).get('started'),
    'ended': now() if done else None,
    'resumed': config.get('resumed') or [],
  }


def check_config(path: pathlib.Path, there: Any, here: Mapping[str, Any]) -> None:
  """Checks what a config.json holds against a run's configuration.

  Args:
    path: of the file, for the message.
    there: its content.
    here: what must be the same.

  Raises:
    ValueError: if they differ; names the keys with both values.
  """
  if isinstance(there, dict):
    there = {key: value for key, value in there.items() if key not in _BESIDE}
  differing = sorted(_differences(path.name, there, plain(here)))
  if differing:
    more = [f'{len(differing) - _MOST} more'] if len(differing) > _MOST else []
    raise ValueError(
      f'{path.parent} belongs to a run with another configuration; '
      + '; '.join(differing[:_MOST] + more)
      + '. Choose another --workdir, or the same settings to resume'
    )


def changed_files(
  there: Mapping[str, str], here: Mapping[str, str]
) -> dict[str, dict[str, str | None]]:
  """The files whose digests differ, by name, with both digests; None where there is no such file.

  >>> changed_files({'a.py': '1', 'b.py': '2'}, {'a.py': '1', 'b.py': '3'})
  {'b.py': {'there': '2', 'here': '3'}}
  """
  return {
    name: {'there': there.get(name), 'here': here.get(name)}
    for name in sorted({*there, *here})
    if there.get(name) != here.get(name)
  }


def files_message(changed: Mapping[str, Mapping[str, str | None]]) -> str:
  """Says which files were changed, and how."""
  digest = lambda value: 'none' if value is None else value[:8]
  each = [
    f'{name} was changed since (sha256 there {digest(found["there"])}, '
    f'here {digest(found["here"])})'
    for name, found in changed.items()
  ]
  return '; '.join(each)


def read_config(directory: pathlib.Path) -> dict[str, Any]:
  """What a run wrote to config.json. Raises ValueError if there is none, or it is damaged."""
  try:
    return read_json(directory / 'config.json')
  except OSError as error:
    raise ValueError(f'{directory} is no work directory of a run: {error}') from error


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return read_json(path)
  except ValueError as error:
    raise ValueError(f'{error}; choose another --workdir') from error


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
  if isinstance(there, dict) and isinstance(here, dict):
    if there.get('name') != here.get('name'):
      # Arguments of two different factories are not comparable.
      yield f'{name}.name: there {_short(there.get("name"))}, here {_short(here.get("name"))}'
      return
    for key in there.keys() | here.keys():
      yield from _differences(f'{name}.{key}', there.get(key), here.get(key))
  elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
    for i, (one, other) in enumerate(zip(there, here, strict=True)):
      yield from _differences(f'{name}[{i}]', one, other)
  elif there != here:
    yield f'{name}: there {_short(there)}, here {_short(here)}'


def _short(value: Any) -> str:
  if isinstance(value, dict) and isinstance(value.get('name'), str):
    return one_line(value)
  return text if len(text := json.dumps(value)) < 60 else text[:57] + '…'
