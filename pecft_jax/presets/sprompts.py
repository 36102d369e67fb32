"""iamwangyabin/S-Prompts at a26e822 (2024-09-26): the authors' code of S-Prompts."""

import functools

from pecft_jax.presets.record import Preset, ValueRange, sgd_with_l2
from pecft_jax.presets.views import parts

PRESETS = {
  'sprompts': Preset(
    'sprompts', {'sprompts': {'length': 10, 'centres': 5}},
    functools.partial(sgd_with_l2, weight_decay=2e-4), 0.01, epochs=30, batch_size=128,
    views=parts, value_range=ValueRange((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    model='vit_base_patch16_224', data='DomainNet, 6 domains of 345 classes',
    source='iamwangyabin/S-Prompts at a26e822',
    where={
      'configs/domainnet_slip.json': (
        'method', 'options.sprompts.length', 'learning_rate', 'epochs', 'batch_size', 'data',
      ),
      'methods/sprompt.py, _train': ('recipe',),
      'methods/sprompt.py, clustering': ('options.sprompts.centres',),
      'models/sinet.py': ('model',),
      'utils/data.py, iDomainNet': ('views', 'value_range'),
    },
    departs=(
      'the configuration is of the form with texts, whose code the form without them shares',
      'the first domain is trained with the weight decay of the others, there with 5e-4',
      'the rate follows its schedule by step, there by epoch',
      'heads start from zero, there from random numbers; clusters are of images without views',
    ),
  ),
}  # fmt: skip
