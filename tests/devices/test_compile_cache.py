"""Compiled programs go to the user's cache directory, unless another was chosen."""

import os
import subprocess
import sys

_ASK = """
import jax
from pecft_jax.devices.compile_cache import use_compile_cache
print(use_compile_cache())
print(jax.config.jax_compilation_cache_dir)
"""


def _asked(**environment):
  kept = {k: v for k, v in os.environ.items() if k not in environment}
  env = {**kept, **{k: v for k, v in environment.items() if v is not None}}
  found = subprocess.run(
    [sys.executable, '-c', _ASK], env=env, text=True, capture_output=True, check=True
  )
  return found.stdout.split('\n')[:2]


def test_the_cache_lies_below_the_users_cache_directory(tmp_path):
  said, used = _asked(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=None)
  assert said == used
  assert used.startswith(f'{tmp_path}/pecft_jax/compiled/')
  assert os.path.isdir(used)


def test_a_directory_that_was_chosen_stays(tmp_path):
  chosen = str(tmp_path / 'mine')
  assert _asked(JAX_COMPILATION_CACHE_DIR=chosen) == [chosen, chosen]


def test_without_a_place_to_write_there_is_no_cache(tmp_path):
  (tmp_path / 'file').write_text('')
  said, used = _asked(XDG_CACHE_HOME=str(tmp_path / 'file'), JAX_COMPILATION_CACHE_DIR=None)
  assert (said, used) == ('None', 'None')
