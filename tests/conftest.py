"""Options and fixtures for all tests."""

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
