"""What importing the library does not import: each dependency comes when it is needed."""

import subprocess
import sys

import pytest

# Needed for data, files, pages or the terminal only.
LAZY = (
  'docstring_parser', 'grain', 'matplotlib', 'orbax', 'PIL', 'rich', 'safetensors', 'sklearn',
  'tensorflow', 'tensorflow_datasets', 'tyro',
)  # fmt: skip
OF_FLAX = {'rich'}  # Which imports it itself.


def loaded(code):
  """The top-level modules that are there after a process has run some code."""
  code += '\nimport sys; print(*sorted({name.partition(".")[0] for name in sys.modules}))'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  return set(done.stdout.splitlines()[-1].split())


def test_the_library_alone_imports_nothing():
  assert not loaded('import pecft_jax') & {'jax', 'numpy', 'flax', 'optax', *LAZY}


@pytest.mark.parametrize('name', ['peft', 'continual', 'data', 'train', 'plan.page'])
def test_a_facade_imports_what_it_computes_with(name):
  assert not loaded(f'import pecft_jax.{name}') & {'flax', *LAZY}


@pytest.mark.parametrize('name', ['backbones', 'interop'])
def test_a_facade_of_models_imports_flax(name):
  assert not loaded(f'import pecft_jax.{name}') & ({*LAZY} - OF_FLAX)


def test_runs_are_read_without_jax_and_what_draws_them():
  assert not loaded('import pecft_jax.report') & {'jax', 'flax', 'optax', *LAZY}


@pytest.mark.parametrize(('kind', 'unneeded'), [('benchmarks', {'jax'}), ('methods', {'flax'})])
def test_lists_import_what_they_list(kind, unneeded):
  code = f"from pecft_jax import cli; cli.main(['list', {kind!r}])"
  assert not loaded(code) & ({'flax', 'matplotlib', 'orbax', 'tyro'} | unneeded)


@pytest.mark.parametrize(
  'flags', [['--help'], ['--version'], ['report', '--help'], ['predict', '--help']]
)
def test_help_of_the_command_is_quick(flags):
  code = f"""
import contextlib
from pecft_jax import cli
with contextlib.suppress(SystemExit):
  cli.main({flags})
"""
  assert not loaded(code) & {'jax', 'numpy', 'flax', 'optax', *LAZY}


def test_flags_of_run_are_told_without_jax():
  code = "from pecft_jax import cli; cli.main(['run', '--help'])"
  assert not loaded(code) & {'jax', 'numpy', 'flax', 'optax', 'matplotlib'}
