"""What `pecft doctor` says of this machine."""

import importlib.metadata
import io
import json
import os

import jax
import pytest
from rich.console import Console

from pecft_jax import cli
from pecft_jax.commands import doctor

METADATA = """Metadata-Version: 2.4
Name: owner
Version: 1.0
Provides-Extra: fast
Provides-Extra: slow
Provides-Extra: nothing
Requires-Dist: numpy>=2
Requires-Dist: jax>=99; python_version >= "3.11"
Requires-Dist: jax>=99; python_version < "3"
Requires-Dist: no-such-thing>=3; extra == "fast"
Requires-Dist: numpy>=999; extra == "fast"
Requires-Dist: optax; extra == "slow"
"""


@pytest.fixture
def owner(tmp_path, monkeypatch):
  """An installed package with requirements that are met, and others that are not."""
  place = tmp_path / 'owner-1.0.dist-info'
  place.mkdir()
  (place / 'METADATA').write_text(METADATA, encoding='utf-8')
  monkeypatch.syspath_prepend(tmp_path)
  return 'owner'


@pytest.fixture
def whole(monkeypatch):
  """A package all of whose requirements are met."""
  monkeypatch.setattr(doctor, 'requirements', lambda: ({'text': [], 'docs': ['mkdocs']}, []))


def test_requirements_come_from_the_metadata_of_the_package(owner):
  extras, own = doctor.requirements(owner)
  version = importlib.metadata.version
  assert extras == {
    'fast': ['no-such-thing>=3 (not installed)', f'numpy>=999 ({version("numpy")} is installed)'],
    'slow': [],
    'nothing': [],
  }
  assert own == [f'jax>=99 ({version("jax")} is installed)']


def test_a_requirement_of_the_library_that_is_not_met_is_broken(owner, monkeypatch, capsys):
  found = doctor.requirements(owner)
  monkeypatch.setattr(doctor, 'requirements', lambda: found)
  assert cli.main(['doctor', '--json']) == 1
  (problem,) = json.loads(capsys.readouterr().out)['problems']
  assert problem.startswith('pecft_jax needs jax>=99')


def test_a_library_that_is_not_installed_is_said(monkeypatch):
  monkeypatch.setattr(doctor, 'requirements', lambda: ({}, None))
  assert 'pip install' in doctor.examined()['problems'][0]


def test_facts_of_this_machine(whole, capsys):
  assert cli.main(['doctor', '--json']) == 0
  facts = json.loads(capsys.readouterr().out)
  versions = facts['versions']
  assert versions['jax'] == jax.__version__
  assert {'python', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'pecft_jax'} <= versions.keys()
  assert sum(each['count'] for each in facts['devices']) == jax.local_device_count()
  assert facts['host']['cores'] >= 1 and facts['host']['memory_bytes'] > 1e8
  assert facts['disk']['directory'] == os.getcwd() and facts['disk']['free_bytes'] > 0
  assert facts['problems'] == []


def test_facts_on_the_terminal(whole, capsys):
  assert cli.main(['doctor']) == 0
  out = capsys.readouterr().out
  assert f'jax {jax.__version__}' in out
  assert 'missing: mkdocs' in out
  assert 'nothing is broken' in out


def test_without_a_device_it_says_why(whole, monkeypatch):
  def none():
    raise RuntimeError('Unable to initialize backend')

  monkeypatch.setattr(jax, 'local_devices', none)
  facts = doctor.examined()
  assert facts['devices'] == []
  assert facts['problems'] == ['JAX finds no device: Unable to initialize backend']
  console = Console(file=io.StringIO(), width=80)
  doctor.print_facts(facts, console)
  assert 'broken: JAX finds no device' in console.file.getvalue()


def test_a_device_that_computes_wrongly_is_broken(whole, monkeypatch):
  monkeypatch.setattr(doctor.jnp, 'matmul', lambda a, b: a @ b + 1)
  assert 'wrong on' in doctor.examined()['problems'][0]


def test_size_of_the_compilation_cache(whole, tmp_path):
  (tmp_path / 'program').write_bytes(b'x' * 300)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  try:
    found = doctor.examined()
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert found['caches']['compilation'] == {'directory': str(tmp_path), 'bytes': 300, 'files': 1}
  assert ('compilation cache', f'{tmp_path}, 300 B in 1 files') in doctor.lines(found)
