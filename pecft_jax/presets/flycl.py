"""gfyddha/Fly-CL at 193b1b8: the authors' code of Fly-CL."""

from pecft_jax.presets.record import Preset, ValueRange

PRESETS = {
  'flycl': Preset(
    'flycl',
    {
      'flycl': {
        'projection': 10_000, 'links': 300, 'kept': 0.3, 'ridges': [1e6, 1e7, 1e8, 1e9],
      },
    },
    None, None, epochs=1, batch_size=128, views=None, value_range=ValueRange((0.5,), (0.5,)),
    model='vit_base_patch16_224', data='CIFAR-100, 10 tasks of 10 classes',
    source='gfyddha/Fly-CL at 193b1b8',
    where={
      'scripts/test_cifar.sh': (
        'options.flycl.projection', 'options.flycl.links', 'options.flycl.kept',
        'options.flycl.ridges', 'model', 'data', 'batch_size',
      ),
      'main.py': ('method', 'epochs'),
      'datasets/load_dataset.py': ('value_range',),
    },
    departs=(
      'an epoch is the least there is, and is not trained',
      'a ridge is chosen on 2,000 examples of a task, there on all',
    ),
  ),
}  # fmt: skip
