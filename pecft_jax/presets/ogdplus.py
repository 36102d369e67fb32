"""MehdiAbbanaBennani/continual-learning-ogdplus at b633f2c (2020-12-13): OGD as others run it."""

import functools

from pecft_jax.presets.record import Preset, ValueRange, sgd_with_l2
from pecft_jax.schedules import constant

PRESETS = {
  'ogd': Preset(
    'finetune', {'ogd': {'size': 500}},
    functools.partial(sgd_with_l2, momentum=0.0, schedule=constant), 1e-3, epochs=5, batch_size=32,
    views=None, value_range=ValueRange((0.1,), (0.2752,)), model='MLP of width 100',
    data='MNIST, 5 tasks of 2 classes', wrap=('ogd',), peft='full',
    source='MehdiAbbanaBennani/continual-learning-ogdplus at b633f2c',
    where={
      'scripts/gen_cl_prod.py, gen_split_mnist_commands: 100 gradients a task': (
        'method', 'wrap', 'epochs', 'batch_size', 'options.ogd', 'data', 'model',
      ),
      'main.py, Config': ('learning_rate',),
      'ogd/ogd_core_new.py': ('recipe', 'peft'),
      'dataloaders/base.py': ('value_range',),
    },
    departs=(
      'the model is a pre-trained transformer here, there trained from scratch',
      'one head for all tasks, which is projected as well; there one for each task, which is not',
    ),
  ),
}  # fmt: skip
