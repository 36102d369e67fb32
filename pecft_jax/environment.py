"""Where a run computes: versions, commit, devices, processor. It does not identify a run.

A run may be resumed in another environment; it then says so once.
"""

import datetime
import functools
import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

import pecft_jax
from pecft_jax.sources import PACKAGES

# What may change the last digits of a result.
_COMPARED = ('versions', 'commit', 'python', 'device', 'platform')


@functools.cache
def environment() -> dict[str, Any]:
  """The environment of this process, as JSON.

  Returns:
    `versions` by package, `commit` of this library's checkout (None where it was installed; it ends
    in `-dirty` where files were changed), `python`, `device` (kind), `platform`, `devices`
    and `processes` (counts), `processor` and `system` of the host.

  >>> sorted(environment())[:4]
  ['commit', 'device', 'devices', 'platform']
  """
  device = jax.devices()[0]
  return {
    'versions': {name: _version(name) for name in PACKAGES},
    'commit': _commit(pathlib.Path(pecft_jax.__file__).parents[1]),
    'python': platform.python_version(),
    'device': device.device_kind,
    'platform': device.platform,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'processor': _processor(),
    'system': f'{platform.system()} {platform.machine()}',
  }


def now() -> str:
  """The time in UTC, to the second, in ISO 8601."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """The versions, devices and commits that differ between two environments, in words.

  >>> changes({'versions': {'jax': '0.10.0'}}, {'versions': {'jax': '0.10.1'}})
  ['jax 0.10.0 -> 0.10.1']
  """
  found = []
  for key in _COMPARED:
    old, new = there.get(key), here.get(key)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      names = [name for name in new if old.get(name) != new[name]]
      found += [f'{name} {old.get(name)} -> {new[name]}' for name in names]
    elif old != new:
      found.append(f'{key} {old} -> {new}')
  return found


def _version(package: str) -> str | None:
  if package == 'pecft_jax':
    return pecft_jax.__version__
  try:
    return importlib.metadata.version(PACKAGES[package])
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit(root: pathlib.Path) -> str | None:
  """The commit of the checkout; None without a checkout, or without git."""
  if not (root / '.git').exists():
    return None
  ask = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude', '*']
  try:
    found = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):
    return None
  return found.stdout.strip() or None


def _processor() -> str:
  """The name of the host's processor; the machine type where the system has no name."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    lines = []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor() or platform.machine()
