"""`pecft doctor`: what a run finds on this machine, and what is broken or missing."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement
from rich.console import Console

import pecft_jax
from pecft_jax.devices.compile_cache import cache_folder, chosen_folder
from pecft_jax.environment import environment
from pecft_jax.text import listed, size

_SIDE = 64  # Of the matrices that are multiplied.


def doctor(as_json: bool, console: Console) -> int:
  """Prints the facts; the exit status is 1 where something is broken."""
  facts = examined()
  if as_json:
    print(json.dumps(facts, indent=1))
  else:
    print_facts(facts, console)
  return 1 if facts['problems'] else 0


def examined() -> dict[str, Any]:
  """The facts about this machine, as JSON.

  Returns:
    `versions` by package, `devices`, `host`, `caches`, `extras` (of each the requirements that are
    not met), `disk`, and `problems` in sentences: what would break a run. A requirement of an extra
    that is not met is no problem.
  """
  problems: list[str] = []
  extras, needed = requirements()
  if needed is None:
    problems.append(
      'pecft_jax has no metadata of an installed package, so its requirements are unknown: install '
      'it, as in pip install -e .'
    )
  problems += [f'pecft_jax needs {each}' for each in needed or ()]
  devices, told = _devices()
  problems += told
  return {
    'versions': _versions(bool(devices)),
    'devices': devices,
    'host': _host(),
    'caches': _caches(problems),
    'extras': extras,
    'disk': {'directory': str(pathlib.Path.cwd()), 'free_bytes': shutil.disk_usage('.').free},
    'problems': problems,
  }


def requirements(
  package: str = 'pecft_jax',
) -> tuple[dict[str, list[str]], list[str] | None]:
  """The requirements of an installed package that are not met here.

  They are read from its metadata.

  Returns:
    Those of each extra, by its name; and those of the package itself, None where it is not
    installed. Each in words, as in `scipy>=1.15 (1.14.1 is installed)`.

  >>> requirements('no_such_package')
  ({}, None)
  """
  try:
    found = importlib.metadata.metadata(package)
  except importlib.metadata.PackageNotFoundError:
    return {}, None
  named = [Requirement(text) for text in found.get_all('Requires-Dist') or ()]
  asked = lambda extra: [each for each in named if _applies(each, extra)]
  own = asked('')
  extras = {
    extra: _unmet(each for each in asked(extra) if each not in own)
    for extra in found.get_all('Provides-Extra') or ()
  }
  return extras, _unmet(own)


def _applies(requirement: Requirement, extra: str) -> bool:
  return requirement.marker is None or requirement.marker.evaluate({'extra': extra})


def _unmet(wanted: Iterable[Requirement]) -> list[str]:
  out = []
  for each in wanted:
    text = f'{each.name}{each.specifier}'
    try:
      version = importlib.metadata.version(each.name)
    except importlib.metadata.PackageNotFoundError:
      out.append(f'{text} (not installed)')
      continue
    if not each.specifier.contains(version, prereleases=True):
      out.append(f'{text} ({version} is installed)')
  return out


def _versions(devices: bool) -> dict[str, str | None]:
  """By package; those that a run records where there are devices."""
  more = environment()['versions'] if devices else {}
  jaxlib = importlib.metadata.version('jaxlib')
  own = {'pecft_jax': pecft_jax.__version__, 'python': platform.python_version()}
  return {**own, 'jax': jax.__version__, 'jaxlib': jaxlib, 'numpy': np.__version__, **more}


def _devices() -> tuple[list[dict[str, Any]], list[str]]:
  """The devices of this process by kind, and what is wrong with them."""
  try:
    devices = jax.local_devices()
  except RuntimeError as error:
    return [], [f'JAX finds no device: {error}']
  found: dict[str, dict[str, Any]] = {}
  for device in devices:
    # None on a CPU; bytes by name elsewhere.
    memory = device.memory_stats() or {}
    entry = found.setdefault(
      device.device_kind,
      {'kind': device.device_kind, 'platform': device.platform, 'count': 0,
       'memory_bytes': memory.get('bytes_limit')},
    )  # fmt: skip
    entry['count'] += 1
  return list(found.values()), [text for device in devices if (text := _broken(device))]


def _broken(device: Any) -> str | None:
  """Why a compiled product of two matrices fails on a device; None where it is right."""
  a = np.arange(_SIDE * _SIDE, dtype=np.float32).reshape(_SIDE, _SIDE) % 3
  try:
    found = jax.device_get(jax.jit(jnp.matmul)(*jax.device_put((a, a), device)))
  except RuntimeError as error:
    return f'a compiled product of matrices fails on {device}: {error}'
  # Small integers, so that every precision is exact.
  right = np.array_equal(found, a @ a)
  return None if right else f'a compiled product of matrices is wrong on {device}'


def _host() -> dict[str, Any]:
  """Memory and cores that this process may use."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return {
    'system': f'{platform.system()} {platform.machine()}',
    'cores': cores,
    'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
  }


def _caches(problems: list[str]) -> dict[str, Any]:
  """The cache of compiled programs; a directory that cannot be written is a problem."""
  place = chosen_folder() or str(cache_folder())
  # A bucket is another file system's.
  if '://' in place:
    return {'compilation': {'directory': place, 'bytes': None}}
  path = pathlib.Path(place)
  if path.exists() and not (path.is_dir() and os.access(path, os.W_OK)):
    problems.append(f'the compilation cache {place} is no directory that can be written')
  sizes = list(_sizes(path))
  return {'compilation': {'directory': place, 'bytes': sum(sizes), 'files': len(sizes)}}


def _sizes(path: pathlib.Path) -> Iterator[int]:
  for each in path.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # Other processes remove files.
      if each.is_file():
        yield each.stat().st_size


def print_facts(facts: Mapping[str, Any], console: Console) -> None:
  """The facts on the terminal."""
  for title, text in lines(facts):
    console.print(f'[bold]{title:<18}[/bold]', end='')
    console.print(text, highlight=False, markup=False, soft_wrap=True)
  for problem in facts['problems']:
    console.print(f'broken: {problem}', style='red', highlight=False, markup=False, soft_wrap=True)
  if not facts['problems']:
    console.print('nothing is broken', style='green')


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """The facts as titles and texts, without the problems."""
  versions = [f'{name} {version or "missing"}' for name, version in facts['versions'].items()]
  host, disk, cache = facts['host'], facts['disk'], facts['caches']['compilation']
  devices = [
    f'{each["count"]} x {each["kind"]} ({each["platform"]}'
    + (f', {size(each["memory_bytes"])} each)' if each['memory_bytes'] else ')')
    for each in facts['devices']
  ]
  kept = cache['directory']
  if cache['bytes'] is not None:
    kept += f', {size(cache["bytes"])} in {cache["files"]} files'
  rows = [
    ('versions', listed(versions, len(versions))),
    ('devices', listed(devices)),
    ('host', f'{host["system"]}, {host["cores"]} cores, {size(host["memory_bytes"])} of memory'),
    ('compilation cache', kept),
    ('free disk', f'{size(disk["free_bytes"])} in {disk["directory"]}'),
  ]
  for extra, missing in facts['extras'].items():
    rows.append((f'extra {extra}', f'missing: {listed(missing)}' if missing else 'installed'))
  return rows
