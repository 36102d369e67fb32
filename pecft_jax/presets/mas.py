"""rahafaljundi/MAS-Memory-Aware-Synapses at c3e6a85 (2018-10-08): the authors' code of MAS."""

import functools

from pecft_jax.presets.record import Preset, ValueRange, sgd_with_l2
from pecft_jax.schedules import constant

PRESETS = {
  'mas': Preset(
    'finetune', {'mas': {'strength': 1.0}},
    functools.partial(sgd_with_l2, momentum=0.9, schedule=constant), 1e-3, epochs=20,
    batch_size=150, views=None, value_range=ValueRange((0.1307,), (0.3081,)), model='MLP',
    data='MNIST, 5 tasks of 2 classes', wrap=('mas',), peft='full',
    source='rahafaljundi/MAS-Memory-Aware-Synapses at c3e6a85',
    where={
      'Demo.ipynb': (
        'method', 'wrap', 'learning_rate', 'epochs', 'options.mas', 'value_range', 'data',
      ),
      'MAS.py, MAS_Omega_Acuumelation': ('recipe', 'batch_size', 'peft'),
      'General_utils/MNIST_Net.py': ('model',),
    },
    departs=(
      'the model is a pre-trained transformer here, there trained from scratch',
      'the gradient is of each example, there of the sum over batches of 200; the head of the task '
      'is not part of it there',
      'the first task has the same rate, there 0.01 for 10 epochs',
    ),
  ),
}  # fmt: skip
