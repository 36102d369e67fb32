"""Where and how runs were made: times compare only where that was the same."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pecft_jax.report.read import Run

# Dates always differ; `resumed` lists environments, which are compared one by one.
_ASIDE = ('started', 'ended', 'resumed')
_LETTERS = 12  # Hex digits shown of a commit.


def on_times(runs: Sequence[Run]) -> str:
  """Caveats for times and memory of runs, in sentences; empty where there is none.

  >>> on_times([])
  ''
  """
  said = [different(runs), _together(runs)]
  return ' '.join(f'{sentence}.' for sentence in said if sentence)


def lines(run: Run) -> list[tuple[str, str | None]]:
  """When and where a run was made, as titles and texts; None for what was not recorded.

  >>> from pecft_jax.report import read_run
  >>> import pathlib
  >>> directory = pathlib.Path('runs/dated')
  >>> directory.mkdir(parents=True)
  >>> _ = (directory / 'results.json').write_text(
  ...   '{"accuracy_matrix": [], "environment": {"device": "TPU v4", "devices": 8}}')
  >>> dict(lines(read_run(directory)))['Devices']
  '8 x TPU v4'
  """
  found = run.results.get('environment') or run.config.get('environment')
  if not isinstance(found, Mapping):
    return [('Environment', None)]
  versions = found.get('versions')
  versions = versions if isinstance(versions, Mapping) else {}
  packages = [f'{name} {version}' for name, version in versions.items() if version is not None]
  processes = found.get('processes') or 1
  devices = None
  if found.get('device') is not None:
    among = f', {processes} processes' if processes > 1 else ''
    devices = f'{found.get("devices") or 1} x {found["device"]}{among}'
  known = lambda key: None if found.get(key) is None else _text(key, found[key])
  rows = [
    ('Started', _date(found.get('started'))),
    ('Ended', _date(found.get('ended')) if found.get('ended') or run.done else 'not yet'),
    ('Devices', devices),
    ('Processor', known('processor')),
    ('System', known('system')),
    ('Python', known('python')),
    ('Versions', ', '.join(packages) or None),
    ('Commit', 'none: no checkout' if 'commit' in found and not found['commit']
     else known('commit')),
  ]  # fmt: skip
  differing = different([run])
  return [*rows, ('Resumed elsewhere', differing)] if differing else rows


def _date(text: Any) -> str | None:
  """A time in ISO 8601 as it is read: `2026-01-02 03:04:05 UTC`."""
  return text.replace('T', ' ').replace('+00:00', ' UTC') if isinstance(text, str) else None


def alike(runs: Sequence[Run]) -> bool:
  """Whether runs were made in the same environment, with the same number of seeds side by side.

  >>> alike([])
  True
  """
  return different(runs) is None and len(_seeds_together(runs)) < 2


def different(runs: Iterable[Run]) -> str | None:
  """The differences between the environments of runs, by key.

  An environment has the versions, the kind and number of devices and the processor of the host.
  A run that was resumed elsewhere has several.

  Args:
    runs: whose times are shown together.

  Returns:
    A sentence without its full stop; None where all environments are the same, or none is recorded.
  """
  runs = list(runs)
  by_run = [_environments(run) for run in runs]
  found = [each for environments in by_run for each in environments]
  parts = []
  for key in dict.fromkeys(key for each in found for key in each):
    values = list(dict.fromkeys(_text(key, each.get(key)) for each in found))
    if len(values) > 1:
      parts.append(f'{key}: {" / ".join(values)}')
  if found and (unknown := by_run.count([])):
    parts.append(f'not recorded in {unknown} of {len(runs)} runs')
  if not parts:
    return None
  return f'Made in different environments, so times do not compare: {"; ".join(parts)}'


def _together(runs: Sequence[Run]) -> str | None:
  """Says that runs were made side by side: each records the time and memory of all of them."""
  numbers = _seeds_together(runs)
  if not numbers or numbers == [1]:
    return None
  text = ' or '.join(f'{number:g}' for number in numbers)
  compared = '' if len(numbers) == 1 else ', and do not compare'
  return f'Times and memory are those of {text} runs side by side{compared}'


def _seeds_together(runs: Sequence[Run]) -> list[float]:
  efficiency = [run.results.get('efficiency') or {} for run in runs]
  return sorted({each.get('seeds_together') or 1 for each in efficiency})


def _environments(run: Run) -> list[dict[str, Any]]:
  """All environments that a run recorded: of its start, of each resumption, and of its end."""
  recorded = [run.config.get('environment'), run.results.get('environment')]
  recorded = [each for each in recorded if isinstance(each, Mapping)]
  for holder in (run.config, run.results.get('environment')):
    more = holder.get('resumed') if isinstance(holder, Mapping) else None
    recorded += [e for e in more if isinstance(e, Mapping)] if isinstance(more, list) else []
  return [flat for each in recorded if (flat := _flat(each))]


def _flat(environment: Mapping[str, Any]) -> dict[str, Any]:
  """Entries by name, the versions among them by their package."""
  own = {k: v for k, v in environment.items() if k not in (*_ASIDE, 'versions')}
  versions = environment.get('versions')
  return {**own, **versions} if isinstance(versions, Mapping) else own


def _text(key: str, value: Any) -> str:
  if value is None:
    return 'none' if key == 'commit' else 'not recorded'
  if key == 'commit' and isinstance(value, str):
    commit, dash, dirty = value.partition('-')
    return commit[:_LETTERS] + dash + dirty
  return value if isinstance(value, str) else json.dumps(value)
