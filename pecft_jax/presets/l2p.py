"""google-research/l2p at dd8836e (2022-12-08): the authors' code of L2P."""

import functools

from pecft_jax.presets.record import Preset
from pecft_jax.recipes import adam, constant

PRESETS = {
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 10, 'top_k': 4, 'pull': 1.0, 'batchwise': True}},
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views='random resized crop and horizontal flips', value_range='[0, 1]',
    model='ViT-B_16 (IN-21k)', data='CIFAR-100, 10 tasks of 10 classes',
    where='google-research/l2p at dd8836e; the rate is 0.03 x batch / 256',
    recalled=('views',),
  ),
}  # fmt: skip
