"""aimagelab/mammoth at e75a491 (2026-05-20): its best configurations."""

import functools
from typing import Any

from pecft_jax.presets.record import (
  CIFAR_RANGE,
  UNIT_RANGE,
  Preset,
  ValueRange,
  sgd_with_l2,
  slow_backbone,
)
from pecft_jax.presets.views import parts, parts_and_brightness, shifts
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant, milestones

_SOURCE: dict[str, Any] = {'source': 'aimagelab/mammoth at e75a491'}
_HUNDRED = 'seq-cifar100-224, 10 tasks of 10 classes'
_MODEL = 'the model is a pre-trained transformer here, there trained from scratch'
_VIEWS = 'stored images are replayed as they were seen, there in new views'
_PLAIN = functools.partial(sgd_with_l2, momentum=0.0, schedule=constant)
_CIFAR10: dict[str, Any] = {
  'epochs': 50,
  'batch_size': 32,
  'views': shifts,
  'value_range': ValueRange((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
  'model': 'ResNet-18',
  'data': 'seq-cifar10, 5 tasks of 2 classes',
  'peft': 'full',
  **_SOURCE,
}


def _cifar10(name: str, *more: str, **places: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """A method's best configuration, the data set's, and the defaults of the command line."""
  return {
    f'models/config/{name}.yaml': ('method', 'wrap', 'learning_rate', 'data', *more),
    'datasets/configs/seq-cifar10/default.yaml': (
      'epochs', 'batch_size', 'views', 'value_range', 'model',
    ),
    'utils/args.py: SGD without momentum, and all weights': ('recipe', 'peft'),
    **{f'models/{name}.py, {at}': names for at, names in places.items()},
  }  # fmt: skip


def _hundred(name: str, *more: str, **places: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  return {
    f'models/config/{name}.yaml': ('method', 'learning_rate', 'data', *more),
    f'datasets/configs/seq-cifar100-224/{name}.yaml': (
      'epochs', 'batch_size', 'views', 'value_range',
    ),
    **{f'models/{name}.py, {at}': names for at, names in places.items()},
  }  # fmt: skip


PRESETS = {
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 5, 'top_k': 5, 'pull': 0.5, 'batchwise': True}},
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views=parts, value_range=UNIT_RANGE, model='vit_base_patch16_224_in21k_fn_in1k_old',
    data=_HUNDRED, **_SOURCE,
    where=_hundred(
      'l2p', 'options.l2p.batchwise', 'options.l2p.pull',
      get_parser=('recipe', 'options.l2p.pool', 'options.l2p.length', 'options.l2p.top_k'),
      __init__=('model',),
    ),
    departs=('the rate is written out: there 0.03, times batch / 256',),
  ),
  'dualprompt': Preset(
    'dualprompt',
    {
      'dualprompt': {
        'general': 5, 'expert': 5, 'general_layers': [0, 1], 'expert_layers': [2, 3, 4],
        'pull': 1.0, 'transfer': True, 'batchwise': True, 'reshaped': True,
      },
    },
    functools.partial(adam, schedule=constant, clip=1.0), 0.015, epochs=5, batch_size=128,
    views=parts, value_range=UNIT_RANGE, model='vit_base_patch16_224_in21k_fn_in1k_old',
    data=_HUNDRED, **_SOURCE,
    where={
      'models/config/dualprompt.yaml': ('method', 'learning_rate', 'data'),
      'datasets/configs/seq-cifar100-224/l2p.yaml': (
        'epochs', 'batch_size', 'views', 'value_range',
      ),
      'models/dualprompt.py, get_parser and begin_task': ('recipe', 'options.dualprompt'),
      'models/dualprompt.py, __init__': ('model',),
    },
    departs=(
      'the rate is written out: there 0.03, times batch / 256',
      'experts of tasks not seen yet are never selected, there by their untrained keys',
    ),
  ),
  'slca': Preset(
    'slca', {'slca': {'epochs': 5, 'samples': 256, 'temperature': 0.1}},
    functools.partial(slow_backbone, factor=0.01, weight_decay=0.0, schedule=constant), 0.01,
    epochs=20, batch_size=128, views=parts_and_brightness, value_range=CIFAR_RANGE,
    model='vit_base_patch16_224 (IN-21k)', data=_HUNDRED, peft='full', **_SOURCE,
    where={
      **_hundred('slca', get_parser=('options.slca.epochs', 'options.slca.temperature', 'model')),
      'models/slca_utils/slca.py': ('recipe', 'peft', 'options.slca.samples'),
    },
    departs=('the first milestone, epoch 40, is never reached',),
  ),
  'derpp': Preset(
    'finetune', {'derpp': {'size': 500, 'alpha': 0.3, 'beta': 0.5, 'distinct': True}},
    functools.partial(_PLAIN, schedule=milestones((35 / 50, 45 / 50), 0.2)), 0.03,
    epochs=50, batch_size=32, views=shifts, value_range=CIFAR_RANGE, model='ResNet-18',
    data='seq-cifar100, 10 tasks of 10 classes', wrap=('derpp',), peft='full', **_SOURCE,
    where={
      'models/config/derpp.yaml': (
        'method', 'wrap', 'learning_rate', 'data', 'options.derpp.size', 'options.derpp.alpha',
        'options.derpp.beta',
      ),
      'utils/buffer.py, get_data': ('options.derpp.distinct',),
      'datasets/configs/seq-cifar100/xder.yaml': ('epochs', 'batch_size', 'recipe'),
      'datasets/seq_cifar100.py': ('views', 'value_range', 'model'),
      'utils/args.py: all weights': ('peft',),
    },
    departs=(_MODEL, _VIEWS),
  ),
  'der': Preset(
    'finetune', {'der': {'size': 500, 'alpha': 0.3}},
    functools.partial(_PLAIN, schedule=milestones((35 / 50, 45 / 50), 0.2)), 0.03,
    epochs=50, batch_size=32, views=shifts, value_range=CIFAR_RANGE, model='ResNet-18',
    data='seq-cifar100, 10 tasks of 10 classes', wrap=('der',), peft='full', **_SOURCE,
    where={
      'models/config/der.yaml': ('method', 'wrap', 'learning_rate', 'data', 'options.der'),
      'datasets/configs/seq-cifar100/xder.yaml': ('epochs', 'batch_size', 'recipe'),
      'datasets/seq_cifar100.py': ('views', 'value_range', 'model'),
      'utils/args.py: all weights': ('peft',),
    },
    departs=(_MODEL, 'stored images are replayed as they were seen, there in new views'),
  ),
  'er_ace': Preset(
    'finetune', {'er_ace': {'size': 200, 'strength': 1.0}}, _PLAIN, 0.1, epochs=1, batch_size=10,
    views=None, value_range=ValueRange((0.5,), (2.0,)), model='ResNet-18 with a third of the width',
    data='seq-cifar10, 5 tasks of 2 classes', wrap=('er_ace',), peft='full', **_SOURCE,
    where={
      'models/config/er_ace.yaml': (
        'method', 'wrap', 'learning_rate', 'data', 'options.er_ace.size',
      ),
      'datasets/configs/seq-cifar10/er_ace.yaml': (
        'epochs', 'batch_size', 'value_range', 'model',
      ),
      'models/er_ace.py, observe': ('options.er_ace.strength',),
      'utils/args.py: SGD without momentum, and all weights': ('recipe', 'peft'),
    },
    departs=(_MODEL, 'the head is linear, there of cosines times 10'),
  ),
  'er': Preset(
    'finetune', {'er': {'size': 500, 'strength': 1.0, 'distinct': True}}, _PLAIN, 0.1,
    wrap=('er',), **_CIFAR10,
    where={
      **_cifar10('er', 'options.er.size', observe=('options.er.strength',)),
      'utils/buffer.py, get_data': ('options.er.distinct',),
    },
    departs=(_MODEL, _VIEWS, 'new and stored examples count alike, there as one batch'),
  ),
  'agem': Preset(
    'finetune', {'agem': {'size': 500}}, _PLAIN, 0.03, wrap=('agem',), **_CIFAR10,
    where=_cifar10('agem', 'options.agem'), departs=(_MODEL,),
  ),
  'ewc': Preset(
    'finetune', {'ewc': {'strength': 20.0, 'decay': 1.0}}, _PLAIN, 0.1, wrap=('ewc',), **_CIFAR10,
    where=_cifar10('ewc_on', 'options.ewc'),
    departs=(
      _MODEL, 'the strength is twice as large for the same penalty, which has a factor 1 / 2 here',
      'examples count alike in the Fisher, there by the probability of their label',
    ),
  ),
  'lwf': Preset(
    'finetune', {'lwf': {'strength': 0.125, 'temperature': 2.0}}, _PLAIN, 0.03, wrap=('lwf',),
    **_CIFAR10,
    where=_cifar10('lwf', get_parser=('options.lwf',)),
    departs=(
      _MODEL, 'the strength is 0.5 / temperature^2: the penalty has the factor temperature^2 here',
      'the head is not trained by itself before each task',
    ),
  ),
  'si': Preset(
    'finetune', {'si': {'strength': 0.1, 'damping': 0.1}},
    functools.partial(adam, schedule=constant), 1e-3, epochs=1, batch_size=128, views=None,
    value_range=UNIT_RANGE, model='MLP of width 2000', data='perm-mnist, 10 tasks',
    wrap=('si',), peft='full', **_SOURCE,
    where={
      'models/config/si.yaml': (
        'method', 'wrap', 'learning_rate', 'data', 'options.si', 'recipe', 'model',
      ),
      'datasets/perm_mnist.py': ('epochs', 'batch_size', 'value_range'),
      'utils/args.py: all weights': ('peft',),
    },
    departs=(_MODEL, 'what is negative of a contribution counts as nothing, as in the paper'),
  ),
  'icarl': Preset(
    'icarl', {'icarl': {'size': 2000}},
    functools.partial(
      sgd_with_l2, weight_decay=2e-5, momentum=0.9, nesterov=True,
      schedule=milestones((49 / 70, 63 / 70), 0.2),
    ), 2.0, epochs=70, batch_size=128, views=shifts,
    value_range=ValueRange(CIFAR_RANGE.mean, (1.0, 1.0, 1.0)), model='ResNet-32',
    data='seq-cifar100, 10 tasks of 10 classes', peft='full', **_SOURCE,
    where={
      'models/config/icarl.yaml': ('method', 'learning_rate', 'data', 'options.icarl'),
      'datasets/configs/seq-cifar100/icarl.yaml': (
        'epochs', 'batch_size', 'views', 'value_range', 'model',
      ),
      'datasets/configs/seq-cifar100/icarl.yaml; models/icarl.py, observe': ('recipe',),
      'utils/args.py: all weights': ('peft',),
    },
    departs=(_MODEL, 'the loss is summed over classes, there their mean; class means are of '
             'exemplars, there of all data'),
  ),
}  # fmt: skip
