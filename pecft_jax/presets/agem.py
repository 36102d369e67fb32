"""facebookresearch/agem at 4542149 (2019-02-28): the authors' code of A-GEM and RWalk."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.schedules import constant

PRESETS = {
  'rwalk': Preset(
    'finetune',
    {'rwalk': {'strength': 1.0, 'decay': 0.9, 'interval': 50, 'damping': 1e-3}},
    functools.partial(sgd_with_l2, momentum=0.0, schedule=constant), 0.03, epochs=1, batch_size=10,
    views=None, value_range=UNIT_RANGE, model='ResNet-18 with a third of the width',
    data='CIFAR-100, 20 tasks of 5 classes, the last 17 for the report', wrap=('rwalk',),
    peft='full', source='facebookresearch/agem at 4542149',
    where={
      'replicate_results_iclr19.sh': (
        'method', 'wrap', 'learning_rate', 'epochs', 'batch_size', 'recipe',
        'options.rwalk.strength',
      ),
      'conv_split_cifar.py': (
        'data', 'options.rwalk.decay', 'options.rwalk.interval',
      ),
      'model/model.py': ('model', 'peft', 'options.rwalk.damping'),
      'utils/data_utils.py': ('value_range',),
    },
    departs=(
      'the model is a pre-trained transformer here, there trained from scratch',
      'an example is classified among all classes seen, there among those of its task',
      'the mean image is not taken away',
      'changes are weighted by half the Fisher, and scores of past and new tasks are averaged, as '
      'in the paper; there by the whole of it, and the mean is added to the past',
    ),
  ),
}  # fmt: skip
