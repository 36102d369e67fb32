"""facebookresearch/GradientEpisodicMemory at 34c6b8e (2018-10-22): the authors' code of GEM."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.schedules import constant

_COMMON: dict[str, Any] = {
  'epochs': 1,
  'batch_size': 10,
  'views': None,
  'value_range': UNIT_RANGE,
  'model': 'ResNet-18 with a third of the width',
  'data': 'CIFAR-100, 20 tasks of 5 classes, 2500 examples each',
  'peft': 'full',
  'source': 'facebookresearch/GradientEpisodicMemory at 34c6b8e',
}
_DEPARTS = (
  'the model is a pre-trained transformer here, there trained from scratch',
  'an example is classified among all classes seen, there among those of its task',
)


def _where(name: str, *more: str) -> dict[str, tuple[str, ...]]:
  return {
    'run_experiments.sh': (
      'method', 'wrap', 'learning_rate', 'batch_size', 'data',
      *(more or (f'options.{name}',)),
    ),
    'main.py: one epoch': ('epochs',),
    'data/cifar100.py': ('value_range',),
    f'model/{name.partition("_")[0]}.py': ('recipe', 'model', 'peft'),
  }  # fmt: skip


_PLAIN = functools.partial(sgd_with_l2, momentum=0.0, schedule=constant)

PRESETS = {
  'gem': Preset(
    'finetune', {'gem': {'size': 5120, 'margin': 0.5, 'ridge': 1e-3}}, _PLAIN, 0.1, wrap=('gem',),
    **_COMMON,
    where={
      **_where('gem', 'options.gem.size', 'options.gem.margin'),
      'model/gem.py': ('recipe', 'model', 'peft', 'options.gem.ridge'),
    },
    departs=(
      *_DEPARTS,
      'the ridge is relative to the mean squared norm of past gradients, there absolute',
      'stored examples are a uniform sample of a task, there its last 256',
    ),
  ),
  'ewc_separate': Preset(
    'finetune', {'ewc_separate': {'strength': 2.0}}, _PLAIN, 1.0, wrap=('ewc_separate',), **_COMMON,
    where=_where('ewc_separate'),
    departs=(
      *_DEPARTS,
      'the strength is twice as large for the same penalty, which has a factor 1 / 2 here',
      'the Fisher is of single examples, all of the task; there of the mean over 10 of them',
    ),
  ),
}  # fmt: skip
