"""GiantJun/CL_Pytorch at ca3a93d (2023-09-10): the authors' code of ACL."""

import functools

from pecft_jax.presets.record import CIFAR_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import shifts_and_brightness
from pecft_jax.schedules import milestones

PRESETS = {
  'acl': Preset(
    'acl', {'acl': {'size': 2000, 'epochs': 50, 'batch_size': 32}},
    functools.partial(
      sgd_with_l2, weight_decay=5e-4, schedule=milestones((70 / 200, 130 / 200, 170 / 200))
    ),
    0.01, epochs=200, batch_size=32, views=shifts_and_brightness, value_range=CIFAR_RANGE,
    model='resnet18 (IN-1k)', data='CIFAR-100, 10 tasks of 10 classes, seed 1993',
    source='GiantJun/CL_Pytorch at ca3a93d',
    where={
      'options/multi_steps/acl/cifar100.yaml': (
        'method', 'options.acl', 'recipe', 'learning_rate', 'epochs', 'batch_size', 'model', 'data',
      ),
      'datasets/cifar100.py': ('views', 'value_range'),
    },
    departs=(
      'adapters beside the MLPs of a transformer, there two convolutions before each stage of a '
      'ResNet, whose output has a learned scale that starts at 0.02',
      'the rate follows its schedule by step, there by epoch',
      'heads are tuned on what is stored after the task, without views; there on as many examples '
      'of each class as were stored before it, with them',
      'a head counts in every update of the tuning, there in those with an example of its classes',
    ),
  ),
}  # fmt: skip
