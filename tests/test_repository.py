"""What people expect to find in a repository, and that its parts agree."""

import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import pecft_jax
from pecft_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def test_the_licence_is_the_one_that_is_declared():
  assert PROJECT['license'] == 'Apache-2.0'
  assert 'Apache License\n' in (ROOT / 'LICENSE').read_text(encoding='utf-8')


def test_nothing_else_lies_at_the_top():
  words = ['git', '-c', 'safe.directory=*', 'ls-files']
  there = (ROOT / '.git').exists() and shutil.which('git')
  found = (
    subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False) if there else None
  )
  if found is None or found.returncode:
    pytest.skip('git lists no files: in a copy without history anything may lie about')
  assert {line.partition('/')[0] for line in found.stdout.splitlines()} == {
    '.ci', '.gitignore', '.pre-commit-config.yaml', 'CHANGELOG.md', 'CITATION.cff',
    'CONTRIBUTING.md', 'LICENSE', 'README.md', 'experiments', 'mkdocs.yml', 'pecft_jax',
    'pyproject.toml', 'tests',
  }  # fmt: skip


def test_the_version_is_the_same_everywhere(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['--version'])
  assert stop.value.code == 0
  assert capsys.readouterr().out.split() == ['pecft', pecft_jax.__version__]
  assert f'\nversion: {pecft_jax.__version__}\n' in (ROOT / 'CITATION.cff').read_text()
  changes = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
  assert re.findall(r'^## \[(\d+\.\d+\.\d+)\]', changes, re.MULTILINE)[0] == pecft_jax.__version__


def test_the_package_runs_as_a_module():
  done = subprocess.run(
    [sys.executable, '-m', 'pecft_jax', '--version'], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ['pecft', pecft_jax.__version__]


def test_each_dependency_has_a_lower_bound():
  extras = PROJECT['optional-dependencies']
  for line in [*PROJECT['dependencies'], *(line for extra in extras.values() for line in extra)]:
    assert re.fullmatch(r'[\w.\[\]-]+>=[\d.]+', line), line


def test_tests_import_what_their_extra_installs():
  # What only parity needs is asked for by `pytest.importorskip`.
  lines = [*PROJECT['dependencies'], *PROJECT['optional-dependencies']['test']]
  known = {re.split(r'[\[>]', line)[0].replace('_', '-').lower() for line in lines}
  owners = importlib.metadata.packages_distributions()
  ours = {path.stem for at in ('*', 'tests/**/*', 'experiments/*') for path in ROOT.glob(at)}
  for path in ROOT.glob('tests/**/test_*.py'):
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
      names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
      if isinstance(node, ast.ImportFrom) and not node.level:
        names = [str(node.module)]
      for top in {name.partition('.')[0] for name in names} - ours - sys.stdlib_module_names:
        found = {owner.replace('_', '-').lower() for owner in owners.get(top, [top])}
        assert found & known, f'{path.relative_to(ROOT)} imports {top}'


def test_hooks_before_a_commit_need_no_download():
  text = (ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8')
  assert re.findall(r'- repo: (\S+)', text) == ['local']
  assert {'ruff check', 'ruff format', 'pyright'} <= set(re.findall(r'name: (.+)', text))
