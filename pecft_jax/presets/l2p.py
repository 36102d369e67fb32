"""google-research/l2p at dd8836e (2022-12-08): the authors' code of L2P and DualPrompt."""

import functools

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts_from_a_twentieth
from pecft_jax.recipes import adam, sgd
from pecft_jax.schedules import constant

PRESETS = {
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 10, 'top_k': 4, 'pull': 1.0, 'batchwise': True}},
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='ViT-B_16 (IN-21k)', data='CIFAR-100, 10 tasks of 10 classes',
    source='google-research/l2p at dd8836e',
    where={
      'configs/cifar100_l2p.py': (
        'method', 'options.l2p', 'recipe', 'learning_rate', 'epochs', 'value_range', 'data',
      ),
      'README.md: 8 devices with 16 each': ('batch_size',),
      'libml/preprocess.py, train_preprocess': ('views',),
      'README.md': ('model',),
    },
    departs=('the rate is written out: there 0.03, times batch / 256',),
  ),
  'l2p_5datasets': Preset(
    'l2p',
    {
      'l2p': {
        'pool': 20, 'length': 10, 'top_k': 4, 'pull': 0.5, 'select': 'task', 'transfer': True,
        'batchwise': True,
      },
    },
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='ViT-B_16 (IN-21k)', data='5-Datasets, 5 tasks of 10 classes',
    source='google-research/l2p at dd8836e',
    where={
      'configs/five_datasets_l2p.py': (
        'method', 'options.l2p', 'recipe', 'learning_rate', 'epochs', 'value_range', 'data',
      ),
      'README.md: 8 devices with 16 each': ('batch_size',),
      'libml/preprocess.py, train_preprocess': ('views',),
      'README.md': ('model',),
    },
    departs=(
      'the rate is written out: there 0.03, times batch / 256',
      'the paper selects by frequency, with a length of 5: select=frequency',
    ),
  ),
  'l2p_core50': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 5, 'top_k': 4, 'pull': 1.0, 'batchwise': True}},
    functools.partial(sgd, momentum=0.9, schedule=constant, clip=1.0), 0.015, epochs=5,
    batch_size=128, peft='full', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='ViT-B_16 (IN-21k)', data='CORe50, 8 domains of 50 classes',
    source='google-research/l2p at dd8836e',
    where={
      'configs/core50_l2p.py': (
        'method', 'options.l2p', 'recipe', 'learning_rate', 'epochs', 'value_range', 'data',
      ),
      'configs/core50_l2p.py: no part is frozen': ('peft',),
      'README.md: 8 devices with 16 each': ('batch_size',),
      'libml/preprocess.py, train_preprocess': ('views',),
      'README.md': ('model',),
    },
    departs=(
      'the rate is written out: there 0.03, times batch / 256',
      "momentum does not look ahead, there it is Nesterov's",
    ),
  ),
  'dualprompt': Preset(
    'dualprompt',
    {
      'dualprompt': {
        'general': 5, 'expert': 5, 'general_layers': [0, 1], 'expert_layers': [2, 3, 4],
        'pull': 1.0, 'transfer': True, 'batchwise': True,
      },
    },
    functools.partial(adam, schedule=constant, clip=1.0), 0.0225, epochs=5, batch_size=192,
    views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='ViT-B_16 (IN-21k)', data='CIFAR-100, 10 tasks of 10 classes',
    source='google-research/l2p at dd8836e',
    where={
      'configs/cifar100_dualprompt.py': (
        'method', 'options.dualprompt', 'recipe', 'learning_rate', 'epochs', 'value_range', 'data',
      ),
      'configs/cifar100_dualprompt.py: 24 per device; README.md: 8 devices': ('batch_size',),
      'libml/preprocess.py, train_preprocess': ('views',),
      'README.md': ('model',),
    },
    departs=(
      'the rate is written out: there 0.03, times batch / 256',
      'experts of tasks not seen yet are never selected, there by their untrained keys',
    ),
  ),
}  # fmt: skip
