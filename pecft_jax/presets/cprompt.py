"""Zhanxin-Gao/CPrompt at 5a946dd: the authors' code of CPrompt."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts

PRESETS = {
  'cprompt': Preset(
    'cprompt',
    {'cprompt': {'length': 50, 'smooth': 1.15, 'margin': 0.1, 'consistency': 1.0}},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, epochs=10, batch_size=16,
    views=parts, value_range=UNIT_RANGE, model='vit_base_patch16_224',
    data='ImageNet-R, 10 tasks of 20 classes, seeds 1993, 87 and 1013',
    source='Zhanxin-Gao/CPrompt at 5a946dd',
    where={
      'exps/imagenetr.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'data', 'options.cprompt.smooth',
        'options.cprompt.margin', 'options.cprompt.consistency',
      ),
      'network/cprompt_net.py': ('options.cprompt.length', 'model'),
      'models/cprompt.py, _train': ('recipe',),
      'utils/data.py, iImageNetR': ('views', 'value_range'),
    },
    departs=(
      'the rate follows its schedule by step, there by epoch',
      'features are those after the last norm, there before it; parts of the head start from zero, '
      'there from random numbers',
    ),
  ),
}  # fmt: skip
