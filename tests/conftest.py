"""Options and fixtures for all tests."""

import os

import pytest


def pytest_addoption(parser):
  """Adds `--kills`."""
  parser.addoption(
    '--kills',
    type=int,
    default=None,
    metavar='N',
    help='how often tests/faults kills each run; a few times by default',
  )


@pytest.fixture
def kills(request) -> int | None:
  """The number given as `--kills`."""
  return request.config.getoption('--kills')


@pytest.fixture(scope='session')
def shared(tmp_path_factory):
  """A directory that all workers of this test session have in common."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
