"""Compiled programs on disk, so that the next start need not compile them again."""

import os
import pathlib
import re

import jax

from pecft_jax.environment import environment

_LEAST = 0.1  # Seconds of compiling that are worth a file.


def cache_folder() -> pathlib.Path:
  """The folder for compiled programs in the user's cache directory, one for each kind of machine.

  A program for one processor may not run on another, which may share the home directory.
  """
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  here = environment()
  kind = '-'.join(str(here[key]) for key in ('system', 'processor', 'device'))
  return pathlib.Path(base, 'pecft_jax', 'compiled', re.sub(r'[^\w.]+', '_', kind))


def chosen_folder() -> str | None:
  """The folder of `JAX_COMPILATION_CACHE_DIR` or of jax's configuration; None where none is set."""
  chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
  return chosen or None


def use_compile_cache() -> str | None:
  """Turns jax's persistent compilation cache on, for this process.

  A directory that was chosen before, by `JAX_COMPILATION_CACHE_DIR` or in jax's configuration,
  stays.

  Returns:
    The directory in use; None where none can be made, which is no error.
  """
  if (chosen := chosen_folder()) is not None:
    return chosen
  folder = cache_folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:  # A home directory that may not be written.
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _LEAST)
  return str(folder)
