"""AIGNLAI/EDGE at a60c117 (2026-02-07): PILOT with TUNA, as its authors' code has it."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth

_OPTIONS = {'epochs': 30, 'shrinkage': 1e-4}


def _tuna(
  file: str,
  rate: float,
  *,
  epochs: int,
  batch_size: int,
  data: str,
  departs: tuple[str, ...],
  **options: Any,
) -> Preset:
  """TUNA on one data set."""
  return Preset(
    'tuna',
    {
      'tuna': {**_OPTIONS, 'samples': 5 * batch_size, **options},
      'adaptformer': {'width': 16, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'},
    },
    functools.partial(sgd_with_l2, weight_decay=5e-4), rate, epochs=epochs, batch_size=batch_size,
    peft='adaptformer', views=parts_from_a_twentieth, value_range=UNIT_RANGE,
    model='vit_base_patch16_224_in21k', data=data, source='AIGNLAI/EDGE at a60c117',
    where={
      f'PILOT/exps/{file}.json': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'model', 'data', 'options.tuna.epochs',
        'options.tuna.orthogonality', 'options.tuna.decay',
      ),
      'PILOT/models/tuna.py, get_optimizer': ('recipe',),
      'PILOT/models/tuna.py, classifer_align': ('options.tuna.samples',),
      'PILOT/models/tuna.py, _compute_mean': ('options.tuna.shrinkage',),
      'PILOT/backbone/vit_tuna.py, VisionTransformer.init_adapters': (
        'peft', 'options.adaptformer.width', 'options.adaptformer.scale',
        'options.adaptformer.dropout',
      ),
      'PILOT/backbone/vit_tuna.py, Block.forward': ('options.adaptformer.read',),
      'PILOT/utils/data.py, build_transform': ('views', 'value_range'),
    },
    departs=(
      'the rate follows its schedule by step, there by epoch, and in the alignment rises again '
      'every five epochs',
      *departs,
    ),
  )  # fmt: skip


PRESETS = {
  'tuna': _tuna(
    'tuna_cifar', 0.01, epochs=15, batch_size=16, orthogonality=0.0, decay=0.0, departs=(),
    data='CIFAR-100, 20 tasks of 5 classes, seed 1993',
  ),
  'tuna_imagenet_r': _tuna(
    'tuna_inr', 0.02, epochs=10, batch_size=32, orthogonality=1e-3, decay=0.1,
    data='ImageNet-R, 10 tasks of 20 classes, seed 1993',
    departs=(
      'means of old classes shrink most in the alignment, there those of new ones, since a size of '
      'tasks is negative',
    ),
  ),
}  # fmt: skip
