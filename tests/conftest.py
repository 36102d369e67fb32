"""Options and fixtures for all tests."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

import pytest
from collecting import collect_rarely

# Workers and processes of a session share what they compile: set before any of them starts.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix='compiled-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

# Where Python is told to leave no compiled modules behind, each process of the tests would compile
# them again; they go where they do not stay.
if os.environ.pop('PYTHONDONTWRITEBYTECODE', ''):
  _MODULES = tempfile.mkdtemp(prefix='modules-')
  atexit.register(shutil.rmtree, _MODULES, ignore_errors=True)
  os.environ['PYTHONPYCACHEPREFIX'] = _MODULES

# Most of the suite's time goes into compiling: without LLVM's optimizations, with the emitters that
# are done first, and with programs as one module each (they are too small to be split), it is less
# than half as long. What is set already is left alone.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # Others refuse a flag they lack.
  os.environ.setdefault(
    'XLA_FLAGS', '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
  )


def pytest_collection_finish():
  """Makes searches for garbage rare, once all test files are imported."""
  collect_rarely()


def pytest_runtest_setup():
  """Empties jax's caches of compiled functions before one is full.

  It holds 8192; beyond that the compilations of a new function count as none.
  """
  import jax
  from jax._src import pjit

  cache = pjit._cpp_pjit_cache_explicit_attributes
  if cache.size() > cache.capacity() // 2:
    jax.clear_caches()


def pytest_addoption(parser):
  """Adds `--kills` and `--fuzz`."""
  parser.addoption(
    '--kills',
    type=int,
    default=None,
    metavar='N',
    help='how often, at least, tests/faults kills each method; by default some, once in each place',
  )
  parser.addoption(
    '--fuzz',
    type=int,
    default=None,
    metavar='N',
    help='how many damaged inputs tests/test_fuzz.py tries of each kind; some dozens by default',
  )


def pytest_configure(config):
  """Takes `--fuzz` as the number of examples of tests that set none, drawn anew each time."""
  from hypothesis import settings

  number = config.getoption('--fuzz')
  settings.register_profile('same', derandomize=True, database=None)
  settings.register_profile('fuzz', max_examples=number or 1, database=None)
  settings.load_profile('fuzz' if number else 'same')


@pytest.fixture
def kills(request) -> int | None:
  """The number given as `--kills`."""
  return request.config.getoption('--kills')


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """A directory that all workers of this test session have in common."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
