"""LAMDA-CL/LAMDA-PILOT at 5240714 (2025-04-19), CIFAR-100 at 224 x 224."""

import functools
from typing import Any

from pecft_jax.presets.record import Preset, sgd_with_l2
from pecft_jax.recipes import adam, constant

_COMMON: dict[str, Any] = {
  'value_range': '[0, 1], without mean and deviation',
  'views': 'random resized crop of 5 % to 100 % of the area',
  'model': 'vit_base_patch16_224',
  'data': 'CIFAR-100, 10 tasks of 10 classes, seed 1993',
}
_BY_STEP = 'the rate follows its schedule by step, there by epoch'
_ADAPTER = {'adaptformer': {'width': 64, 'scale': 0.1}}

PRESETS = {
  'simplecil': Preset(
    'simplecil', {}, None, None, epochs=1, batch_size=256,
    where='LAMDA-CL/LAMDA-PILOT at 5240714', **_COMMON,
  ),
  'finetune': Preset(
    'finetune', {}, functools.partial(sgd_with_l2, weight_decay=2e-4), 1e-3,
    epochs=20, batch_size=128, peft='full',
    where='LAMDA-CL/LAMDA-PILOT at 5240714',
    departs=('the schedule of the rate is a cosine',), recalled=('peft', 'recipe'), **_COMMON,
  ),
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 5, 'top_k': 5, 'pull': 0.1, 'batchwise': True}},
    functools.partial(adam, schedule=constant), 1.875e-3, epochs=5, batch_size=16,
    where='LAMDA-CL/LAMDA-PILOT at 5240714', **_COMMON,
  ),
  'ease': Preset(
    'ease', {'ease': {'alpha': 0.1}, **_ADAPTER},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.025, epochs=20, batch_size=48,
    peft='adaptformer', where='LAMDA-CL/LAMDA-PILOT at 5240714', departs=(_BY_STEP,), **_COMMON,
  ),
  'ranpac': Preset(
    'ranpac', {'ranpac': {'projection': 10_000}, **_ADAPTER},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, epochs=20, batch_size=48,
    peft='adaptformer', where='LAMDA-CL/LAMDA-PILOT at 5240714', departs=(_BY_STEP,),
    **_COMMON,
  ),
}  # fmt: skip
