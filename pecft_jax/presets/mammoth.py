"""aimagelab/mammoth at e75a491 (2026-05-20)."""

import functools

from pecft_jax.presets.record import Preset
from pecft_jax.recipes import adam, constant, sgd

_DATA = 'seq-cifar100-224, 10 tasks of 10 classes'

PRESETS = {
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 5, 'top_k': 5, 'pull': 0.5, 'batchwise': True}},
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views='as the data set has them', value_range='[0, 1]',
    model='vit_base_patch16_224_in21k_fn_in1k_old', data=_DATA,
    where='aimagelab/mammoth at e75a491, its best configuration; the rate is 0.03 x batch / 256',
    recalled=('views',),
  ),
  'derpp': Preset(
    'finetune', {'derpp': {'size': 500, 'alpha': 0.3, 'beta': 0.5}},
    functools.partial(sgd, momentum=0.0, schedule=constant), 0.03, epochs=50, batch_size=32,
    views='random crop with padding 4, and horizontal flips', value_range='mean and deviation',
    model='ResNet-18, trained from scratch', data='seq-cifar100, buffer of 500',
    where='aimagelab/mammoth at e75a491, its best configuration', wrap=('derpp',), peft='full',
    departs=('the model is a pre-trained transformer here',),
    recalled=('learning_rate', 'epochs', 'batch_size', 'views', 'value_range'),
  ),
}  # fmt: skip
