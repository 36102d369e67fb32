"""What eight devices compute of every transform is what one computes."""

import pytest

from distributed.devices import report_of
from distributed.eight_transforms import LIVING, TRANSFORMS, layouts_of

pytestmark = pytest.mark.slow

# Of float32, in each array over max(1, its largest entry): sums over devices come in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def found(shared):
  """All that the process with eight devices reports."""
  return report_of('eight_transforms.py', shared / 'transforms.json')


def _far(found, what, name):
  far = {mesh: each[what][name] for mesh, each in found['apart'].items() if name in each[what]}
  assert set(far) == {*layouts_of(name)}
  return {mesh: distance for mesh, distance in far.items() if not distance <= TOLERANCE}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_features_and_gradients_are_those_of_one_device(name, found):
  assert found['size'] > 0.1
  assert not _far(found, 'features', name)
  assert not _far(found, 'gradients', name)


@pytest.mark.parametrize('name', LIVING)
def test_transforms_with_hooks_are_calibrated_and_trained_as_on_one_device(name, found):
  """The choices by gathered gradients are among what is compared."""
  assert not _far(found, 'trained', name)
