"""sahagobinda/GPM at 1a238ec (2021-06-25): the authors' code of GPM."""

import functools

from pecft_jax.presets.record import Preset, ValueRange, sgd_with_l2
from pecft_jax.schedules import constant

PRESETS = {
  'gpm': Preset(
    'gpm', {'gpm': {'threshold': 0.97, 'growth': 0.003}},
    functools.partial(sgd_with_l2, momentum=0.0, schedule=constant), 0.01, epochs=200,
    batch_size=64, views=None,
    value_range=ValueRange(
      tuple(x / 255 for x in (125.3, 123.0, 113.9)), tuple(x / 255 for x in (63.0, 62.1, 66.7))
    ),
    model='AlexNet',
    data='CIFAR-100, 10 tasks of 10 classes', source='sahagobinda/GPM at 1a238ec',
    where={
      'main_cifar100.py': (
        'method', 'options.gpm', 'recipe', 'learning_rate', 'epochs', 'batch_size', 'model',
      ),
      'dataloader/cifar100.py': ('value_range', 'data'),
    },
    departs=(
      'a LoRA is trained on a pre-trained transformer here, there all weights from scratch',
      'an example is classified among all classes seen, there among those of its task',
      'the rate is constant, there halved where held-out data do not improve, and training stops',
    ),
  ),
}  # fmt: skip
