"""What is watched at sites does not depend on the mesh."""

import pytest

from distributed.devices import report_of

pytestmark = pytest.mark.slow


def test_eight_devices_watch_what_one_watches(shared):
  found = report_of('eight_watched.py', shared / 'watched.json')
  names = [f'linear:block_{i}/{name}' for i in range(2) for name in ('attn/k', 'mlp/fc2')]
  assert found['sites'] == sorted(names)
  assert set(found['apart']) == {'data 8', 'data 4, model 2', 'fsdp'}
  # Where the model is split, sums of products are added up in another order.
  assert max(found['apart'].values()) < 1e-4, found['apart']
