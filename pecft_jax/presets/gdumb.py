"""drimpossible/GDumb at 4f412d7 (2023-06-05): the authors' code of GDumb."""

from pecft_jax.presets.record import CIFAR_RANGE, Preset
from pecft_jax.presets.views import shifts

PRESETS = {
  'gdumb': Preset(
    'gdumb', {'gdumb': {'size': 2000, 'epochs': 256, 'batch_size': 16}}, None, None, epochs=1,
    batch_size=16, views=shifts, value_range=CIFAR_RANGE, model='ResNet-32',
    data='CIFAR-100, 20 tasks of 5 classes', peft='full', source='drimpossible/GDumb at 4f412d7',
    where={
      'scripts/replicate.sh': (
        'method', 'options.gdumb.size', 'options.gdumb.epochs', 'data', 'model', 'epochs',
      ),
      'src/opts.py': ('batch_size', 'options.gdumb.batch_size'),
      'src/dataloader.py': ('views', 'value_range'),
      'src/main.py: all weights': ('peft',),
    },
    departs=(
      'the model is a pre-trained transformer here, there trained from scratch',
      'half of the updates have CutMix there, and what is stored is trained on in new views',
      'the rate falls once, there again after 1, 2, 4, ... epochs',
    ),
  ),
}  # fmt: skip
