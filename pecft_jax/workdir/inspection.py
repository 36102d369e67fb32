"""The content of a work directory, as JSON; it may be of a running, a damaged or an unfinished run.

Nothing is written, removed or locked.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from pecft_jax.files import read_json, read_rows
from pecft_jax.local import work_directory
from pecft_jax.workdir.checkpoint import UNFINISHED
from pecft_jax.workdir.lanes import names_beside, places_together
from pecft_jax.workdir.record import COLUMNS
from pecft_jax.workdir.stored import Contents, Damaged, Leaf, Unread, read_contents, verify

# Any of these makes a directory a work directory.
_SIGNS = ('config.json', 'results.json', 'metrics.jsonl', 'checkpoints', '.lock')


def inspect_run(directory: str | pathlib.Path, *, arrays: bool = False) -> dict[str, Any]:
  """The facts about a work directory; what cannot be read is among its `problems`.

  Args:
    directory: of a run, or of a reference within one.
    arrays: also read the arrays of each checkpoint and check them against their
      digest; in host memory, one checkpoint at a time.

  Returns:
    `directory`; `status` (`done`, `running`, `stopped`, or `unknown` without a
    readable results.json), `process` (id of the one that runs it, or None),
    `method`, `seed` (a list of seeds side by side; what follows is the first
    one's, except the log, which is of all; None for orders side by side),
    `finished` and `total` tasks, `average_accuracy`, `identity`, `settings` and
    `training` as in config.json; `checkpoints`, the oldest first; `state`, the
    groups of leaves of the newest readable one, and `leaves`; `log`; `damaged`
    and `unfinished` directories; `files`, bytes by
    name; `bytes` of all; `references`, facts about each; `problems`, as text.

  Raises:
    ValueError: if the directory is none of a run.
  """
  path = work_directory(directory)
  if not path.is_dir():
    raise ValueError(f'there is no directory {path}')
  if not any((path / name).exists() for name in _SIGNS):
    found = sorted(os.listdir(path))[:8]
    raise ValueError(f'{path} is no work directory: expected one of {_SIGNS} there, found {found}')
  problems: list[str] = []
  config = _read_json(path / 'config.json', problems)
  # Of seeds side by side each has a log and results of its own.
  outputs = [path / name for name in _places(config, problems)] or [path]
  begun = (outputs[0] / 'results.json').exists() or (path / 'checkpoints').exists()
  results = _read_json(outputs[0] / 'results.json', problems) if begun else {}
  process = holder(path / '.lock')
  read = [_checkpoint(at, arrays) for at in _numbered(path / 'checkpoints')]
  checkpoints = [facts for facts, _ in read if facts is not None]
  problems += [facts['problem'] for facts in checkpoints if facts['problem']]
  contents = [each for _, each in read if each is not None]
  leaves = contents[-1].leaves if contents else []
  metrics = results.get('metrics')
  found = [_results(output, problems) for output in outputs[1:]] if begun else []
  if not names_beside(path):  # Of one of several, the checkpoints are beside it.
    problems += _refused(path, outputs, [results, *found], bool(checkpoints))
  if contents:
    problems += _unlike(config, contents[-1])
    problems += _too_few(outputs, checkpoints[-1]['tick'], contents[-1])
  log = _log([output / 'metrics.jsonl' for output in outputs], problems)
  references = {
    at.name: inspect_run(at, arrays=arrays)
    for at in _directories(path / 'references')
    if any((at / name).exists() for name in _SIGNS)
  }
  return {
    'directory': str(path),
    'status': _status(results, process),
    'process': process,
    'method': results.get('method') or _method(config),
    'seed': config.get('seed', config.get('seeds_together')),
    'finished': _length(results.get('accuracy_matrix')),
    'total': _length(results.get('tasks')),
    'average_accuracy': metrics.get('average_accuracy') if isinstance(metrics, dict) else None,
    'identity': config.get('identity') or (contents[-1].identity if contents else None) or {},
    'settings': config.get('settings') or {},
    'training': config.get('training') or {},
    'checkpoints': checkpoints,
    'state': _groups(leaves),
    'leaves': [
      {'name': name, 'shape': list(shape), 'dtype': dtype, 'bytes': _size(shape, dtype)}
      for name, (shape, dtype) in leaves
    ],
    'log': log,
    'damaged': _sizes(_directories(path / 'damaged')),
    'unfinished': _sizes(
      at for at in _directories(path / 'checkpoints') if re.fullmatch(UNFINISHED, at.name)
    ),
    'files': _sizes(sorted(path.iterdir())),
    'bytes': bytes_of(path),
    'references': references,
    'problems': problems,
  }


def _results(output: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  return _read_json(output / 'results.json', problems)


def _refused(
  path: pathlib.Path,
  outputs: Sequence[pathlib.Path],
  results: Sequence[dict[str, Any]],
  checkpoints: bool,
) -> list[str]:
  """Reasons, besides damage, why the same command on the directory would be refused."""
  found = [f'{path / ".lock"} is a directory'] if (path / '.lock').is_dir() else []
  for output, each in zip(outputs, results, strict=True):
    there = each.get('status') == 'done' or (each and not (path / 'checkpoints').is_dir())
    if there and not checkpoints:
      found.append(
        f'{output / "results.json"} is there, and the checkpoints in {path / "checkpoints"} are '
        'gone: bring them back to resume'
      )
  return found


def _unlike(config: dict[str, Any], contents: Contents) -> list[str]:
  """Says where the configuration and a checkpoint have different data or weights."""
  there, here = contents.identity or {}, config.get('identity') or {}
  keys = sorted(key for key in there.keys() & here.keys() if there[key] != here[key])
  return [f'config.json and the newest checkpoint differ in {", ".join(keys)}'] if keys else []


def _too_few(outputs: Sequence[pathlib.Path], tick: int, contents: Contents) -> list[str]:
  """Says where a log is shorter than when the newest checkpoint was made."""
  found = []
  for output, seed in zip(outputs, contents.position['seeds'], strict=False):
    path = output / 'metrics.jsonl'
    rows = len(read_rows(path)) if path.is_file() else 0
    if rows < seed['rows']:
      found.append(f'{path} has {rows} rows, checkpoint {tick} was made after {seed["rows"]}')
  return found


def holder(lock: pathlib.Path) -> int | None:
  """The process of this machine that holds a work directory, as far as its lock file tells.

  The lock itself is not tried: that would keep a run from starting at that moment.
  """
  try:
    found = re.fullmatch(r'pid (\d+)', lock.read_text(encoding='utf-8', errors='replace').strip())
  except OSError:
    return None
  if found is None:
    return None
  number = int(found[1])
  try:
    os.kill(number, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass  # The process exists, and belongs to another user.
  opened = pathlib.Path(f'/proc/{number}/fd')
  try:
    return number if any(_same(at, lock) for at in opened.iterdir()) else None
  except OSError:  # Not Linux, or no permission: a process with that number is taken as the holder.
    return number


def bytes_of(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files below a directory; files deleted meanwhile count as 0."""
  files = [path] if path.is_file() else []
  for folder, _, names in os.walk(path):
    files += [pathlib.Path(folder, name) for name in names]
  return sum(map(_bytes_of_file, files))


def _places(config: dict[str, Any], problems: list[str]) -> list[str]:
  """The directories of what ran side by side; none for a run of one."""
  for key, kind in (('seeds_together', int), ('orders_together', str)):
    found = config.get(key) or []
    if not isinstance(found, list) or not all(type(each) is kind for each in found):
      problems.append(f'config.json is damaged: {key} is {found!r:.60}')
      return []
  return places_together(config)


def _method(config: dict[str, Any]) -> str | None:
  settings = config.get('method')
  return settings.get('name') if isinstance(settings, dict) else settings


def _bytes_of_file(path: pathlib.Path) -> int:
  try:
    return path.lstat().st_size
  except OSError:
    return 0


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
  try:
    return one.samefile(other)
  except OSError:
    return False


def _status(results: dict[str, Any], process: int | None) -> str:
  if process is not None:
    return 'running'
  return {'done': 'done', 'running': 'stopped'}.get(str(results.get('status')), 'unknown')


def _read_json(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
  try:
    return read_json(path)
  except FileNotFoundError:
    problems.append(f'{path.name} is missing')
  except OSError as error:
    problems.append(f'{path.name} could not be read: {error.strerror}')
  except ValueError as error:
    problems.append(str(error))
  return {}


def _length(value: Any) -> int:
  return len(value) if isinstance(value, list) else 0


def _directories(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(at for at in path.iterdir() if at.is_dir()) if path.is_dir() else []


def _numbered(path: pathlib.Path) -> list[pathlib.Path]:
  found = [at for at in path.iterdir() if at.name.isdigit()] if path.is_dir() else []
  return sorted(found, key=lambda at: int(at.name))


def _checkpoint(path: pathlib.Path, arrays: bool) -> tuple[dict[str, Any] | None, Contents | None]:
  """Facts about one checkpoint, with its description where that can be read.

  None for a checkpoint that is deleted meanwhile: a running process keeps the newest only.
  """
  facts: dict[str, Any] = {'tick': int(path.name), 'bytes': bytes_of(path), 'problem': None}
  contents = None
  try:
    contents = read_contents(path)
    if arrays:
      verify(path)
  except (Damaged, Unread) as error:
    if not path.exists():
      return None, None
    facts['problem'] = str(error)
  facts['verified'] = arrays and facts['problem'] is None
  if contents is not None:
    position = contents.position
    facts |= {name: position.get(name) for name in ('task', 'phase', 'batch')}
    facts['rows'] = sum(found['rows'] for found in position['seeds'])
    facts['written'] = contents.written.isoformat() if contents.written else None
    facts['state_sha256'] = contents.state_sha256
  return facts, contents


def _groups(leaves: Sequence[Leaf]) -> list[dict[str, Any]]:
  """Leaves by the top entry of their path, the largest group first."""
  groups: dict[str, dict[str, Any]] = {}
  for name, (shape, dtype) in leaves:
    group = groups.setdefault(name.split('/')[0], {'leaves': 0, 'bytes': 0})
    group['leaves'] += 1
    group['bytes'] += _size(shape, dtype)
  total = sum(group['bytes'] for group in groups.values()) or 1
  by_size = sorted(groups.items(), key=lambda item: -item[1]['bytes'])
  return [{'name': name, **group, 'share': group['bytes'] / total} for name, group in by_size]


def _size(shape: Sequence[int], dtype: str) -> int:
  size = jnp.dtype(dtype).itemsize
  for length in shape:
    size *= length
  return size


def _log(paths: Sequence[pathlib.Path], problems: list[str]) -> dict[str, Any]:
  kinds = {'train': 0, 'eval': 0}  # Others are names of a method's own phases.
  for path in paths:
    try:
      rows = read_rows(path)
    except OSError as error:
      problems.append(f'{path.name} could not be read: {error.strerror}')
      continue
    for number, row in enumerate(rows, 1):
      kind = None if row.value is None else row.value.get('kind')
      strange = sorted((row.value or {}).keys() - set(COLUMNS))
      if not isinstance(kind, str):
        without = f'{path}, line {number}, is damaged: expected a kind of row, got {kind!r}'
        problems.append(row.problem or without)
      elif strange:
        expected = f'expected {COLUMNS}, got {strange}, too'
        problems.append(f'{path}, line {number}, is damaged: {expected}')
      else:
        kinds[kind] = kinds.get(kind, 0) + 1
  return {'rows': sum(kinds.values()), **kinds}


def _sizes(paths: Any) -> dict[str, int]:
  return {at.name: bytes_of(at) for at in paths}
