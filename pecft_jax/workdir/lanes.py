"""Experiments that were run side by side: where each has its record, and its state."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pecft_jax.workdir.claim import read_config


class Lane(NamedTuple):
  """One experiment of a work directory.

  Attributes:
    record: the directory with its config.json.
    config: the content of that.
    directory: the one with the checkpoints.
    index: its place in their states; None where there is only one experiment.
  """

  record: pathlib.Path
  config: dict[str, Any]
  directory: pathlib.Path
  index: int | None


def places_together(config: Mapping[str, Any]) -> list[str]:
  """The directories of experiments side by side; none for a run of one, or for one of several.

  Args:
    config: content of a config.json.

  >>> places_together({'seeds_together': [0, 1]})
  ['seed_0', 'seed_1']
  >>> places_together({'seeds_together': [0, 1], 'seed': 1})
  []
  """
  if 'seed' in config:  # That of one experiment; several have one in each of their directories.
    return []
  seeds = [f'seed_{seed}' for seed in config.get('seeds_together') or ()]
  return seeds or list(config.get('orders_together') or ())


def names_beside(directory: pathlib.Path) -> list[str]:
  """The names of experiments side by side, of which a directory is one; none for any other."""
  directory = directory.resolve()
  parent = directory.parent
  if (directory / 'checkpoints').exists() or not (parent / 'config.json').is_file():
    return []
  names = places_together(read_config(parent))
  return names if directory.name in names else []


def lane_of(directory: pathlib.Path, seed: int | None = None) -> Lane:
  """Finds one experiment of a work directory.

  Args:
    directory: of a run, of one of several experiments side by side, or of several seeds.
    seed: which of the seeds; None where the directory is of one experiment.

  Raises:
    ValueError: for no work directory, a seed that was not learned, or a directory of several
      experiments without a choice.
  """
  beside = names_beside(directory)
  config = read_config(directory)
  if beside:
    _check_own(directory, config, seed)
    at = directory.resolve()
    return Lane(directory, config, at.parent, beside.index(at.name))
  if names := places_together(config):
    if 'orders_together' in config:
      raise ValueError(f'{directory} has the orders {names}: name the directory of one of them')
    seeds = config['seeds_together']
    if seed not in seeds:
      raise ValueError(f'{directory} has seeds {seeds}: name one of them, got {seed}')
    return Lane(directory, config, directory, seeds.index(seed))
  _check_own(directory, config, seed)
  return Lane(directory, config, directory, None)


def _check_own(directory: pathlib.Path, config: Mapping[str, Any], seed: int | None) -> None:
  own = config.get('seed')
  if seed not in (None, own):
    raise ValueError(f'{directory} has seed {own} alone, got {seed}: leave the seed out')
