"""Splitting a step over devices makes it smaller on each: ViT-L/16 and Llama 3.2 1B, as shapes."""

import pytest

from distributed.devices import report_of

pytestmark = pytest.mark.slow
# As Meta's config.json and timm's model card have them, without heads.
PARAMETERS = {'vit': 303_301_632, 'llama': 1_235_814_400}


@pytest.fixture(scope='module')
def found(shared):
  """Bytes per device, by model and layout."""
  # The CPU's default schedule runs at once what it can, whatever memory that takes.
  schedule = '--xla_cpu_enable_concurrency_optimized_scheduler=false'
  return report_of('memory.py', shared / 'memory.json', flags=[schedule])


@pytest.mark.parametrize('model', PARAMETERS)
def test_one_device_holds_the_whole_model(model, found):
  assert found[model]['1 device']['frozen'] == 4 * PARAMETERS[model]


@pytest.mark.parametrize(
  ('model', 'layout', 'parts'),
  [
    ('vit', 'data 8', 1),
    ('vit', 'data 4, model 2', 2),
    ('vit', 'data 1, model 8', 8),
    ('vit', 'data 8, fsdp', 8),
    ('llama', 'data 1, model 8', 8),
    ('llama', 'data 4, model 2, fsdp', 8),
  ],
)
def test_frozen_weights_take_their_part(model, layout, parts, found):
  whole, split = found[model]['1 device'], found[model][layout]
  # Norms, biases, positions and the patch embedding are whole: at most 3 % of a part.
  assert whole['frozen'] / parts <= split['frozen'] < 1.03 * whole['frozen'] / parts
  # What XLA counts as arguments is that, the state, and a batch of some MB.
  assert 0 <= split['arguments'] - split['frozen'] - split['trained'] < 20e6


@pytest.mark.parametrize(
  ('model', 'layout', 'parts'),
  [
    # Batches, and all that is computed of them, go over `data`.
    ('vit', 'data 8', 8),
    ('vit', 'data 8, fsdp', 8),
    # Over `model` go heads and hidden units, but not the residual stream and what norms keep.
    ('vit', 'data 4, model 2', 6.5),
    ('vit', 'data 1, model 8', 3),
    ('llama', 'data 1, model 8', 4),
    ('llama', 'data 4, model 2, fsdp', 7),
  ],
)
def test_temporaries_take_theirs(model, layout, parts, found):
  whole, split = found[model]['1 device'], found[model][layout]
  assert split['temporaries'] < 1.03 * whole['temporaries'] / parts


def test_gathered_weights_are_never_held_together(found):
  gathered, plain = (found['vit'][name]['temporaries'] for name in ('data 8, fsdp', 'data 8'))
  layer = 12 * 1024**2 * 4  # One block's matrices: D x (3 D + D + 4 D + 4 D), float32.
  assert gathered - plain < 2 * layer < found['vit']['1 device']['frozen'] / 12
