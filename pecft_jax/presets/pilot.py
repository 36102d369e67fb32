"""LAMDA-CL/LAMDA-PILOT at 5240714 (2025-04-19), CIFAR-100 at 224 x 224."""

import functools
from typing import Any

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2, slow_backbone, slow_head
from pecft_jax.presets.views import parts_from_a_twentieth
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant, milestones

_COMMON: dict[str, Any] = {
  'views': parts_from_a_twentieth,
  'value_range': UNIT_RANGE,
  'model': 'vit_base_patch16_224',
  'source': 'LAMDA-CL/LAMDA-PILOT at 5240714',
}
_TENS = 'CIFAR-100, 10 tasks of 10 classes, seed 1993'
_ADAPTER = {'width': 64, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'}
_BY_STEP = 'the rate follows its schedule by step, there by epoch'
_FROM_ZERO = 'prompts start from small random numbers, there from zero'


def _where(file: str, *more: str, **places: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
  """The configuration of a method, its code, and what all methods share."""
  usual = ('method', 'epochs', 'batch_size', 'learning_rate', 'model', 'data')
  return {
    f'exps/{file}.json': (*usual, *more),
    'utils/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
    **{f'models/{file}.py, {name}': names for name, names in places.items()},
  }


def _aper(
  file: str,
  peft: str,
  code: str,
  options: dict[str, Any],
  places: dict[str, tuple[str, ...]],
  *,
  epochs: int = 20,
  batch_size: int = 48,
  weight_decay: float = 5e-4,
  departs: tuple[str, ...] = (),
) -> Preset:
  """One of APER's variants, which differ in what the first task trains."""
  return Preset(
    'aper', options, functools.partial(sgd_with_l2, weight_decay=weight_decay), 0.01,
    epochs=epochs, batch_size=batch_size, peft=peft, head='cosine', data=_TENS, **_COMMON,
    where={
      f'exps/{file}.json': ('method', 'epochs', 'batch_size', 'learning_rate', 'model', 'data'),
      'utils/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
      f'models/{code}.py, _train': ('recipe',),
      'utils/inc_net.py, SimpleVitNet.generate_fc': ('head',),
      **places,
    },
    departs=(_BY_STEP, *departs),
  )  # fmt: skip


PRESETS = {
  'simplecil': Preset(
    'simplecil', {}, None, None, epochs=1, batch_size=256, data=_TENS, **_COMMON,
    where={
      'exps/simplecil.json': ('method', 'epochs', 'batch_size', 'model', 'data'),
      'utils/data.py, build_transform and iCIFAR224': ('views', 'value_range'),
    },
    departs=('an epoch is the least there is, and is not trained',),
  ),
  'aper': _aper(
    'aper_aperpter', 'adaptformer', 'aper_adapter', {'adaptformer': _ADAPTER},
    {
      'exps/aper_aperpter.json, ffn_num': ('options.adaptformer.width',),
      'backbone/vit_adapter.py, Block': (
        'peft', 'options.adaptformer.dropout', 'options.adaptformer.read',
      ),
      'utils/inc_net.py, get_backbone': ('options.adaptformer.scale',),
    },
  ),
  'aper_ssf': _aper(
    'aper_ssf', 'ssf', 'aper_ssf', {'ssf': {'spread': 0.02}},
    {'backbone/vit_ssf.py, init_ssf_scale_shift': ('peft', 'options.ssf')},
  ),
  'aper_vpt_shallow': _aper(
    'aper_vpt_shallow', 'vpt_shallow', 'aper_vpt', {'vpt_shallow': {'length': 5}},
    {'exps/aper_vpt_shallow.json, vpt_type and prompt_token_num': ('peft', 'options.vpt_shallow')},
    departs=(_FROM_ZERO,),
  ),
  'aper_vpt_deep': _aper(
    'aper_vpt_deep', 'vpt_deep', 'aper_vpt', {'vpt_deep': {'length': 5}},
    {'exps/aper_vpt_deep.json, vpt_type and prompt_token_num': ('peft', 'options.vpt_deep')},
    departs=(_FROM_ZERO,),
  ),
  'aper_full': _aper(
    'aper_finetune', 'full', 'aper_finetune', {},
    {'models/aper_finetune.py, _train, all parameters': ('peft',)},
    epochs=6, batch_size=128, weight_decay=0.05,
  ),
  'finetune': Preset(
    'finetune', {'finetune': {'masked': True}},
    functools.partial(sgd_with_l2, weight_decay=2e-4, schedule=constant), 1e-3,
    epochs=20, batch_size=128, peft='full', data=_TENS, **_COMMON,
    where=_where(
      'finetune',
      _update_representation=('options.finetune',), _train=('recipe', 'peft'),
    ),
    departs=('the first task is trained with the weight decay of the others, there with 5e-4',),
  ),
  'icarl': Preset(
    'icarl', {'icarl': {'size': 2000}},
    functools.partial(sgd_with_l2, weight_decay=2e-4, schedule=constant), 1e-3,
    epochs=20, batch_size=128, peft='full', data=_TENS, **_COMMON,
    where=_where('icarl', 'options.icarl', _train=('recipe', 'peft')),
    departs=(
      'the loss is the paper\'s binary cross-entropy, there cross-entropy and distillation',
      'the first task is trained with the weight decay of the others, there with 5e-4',
    ),
  ),
  'l2p': Preset(
    'l2p', {'l2p': {'pool': 10, 'length': 5, 'top_k': 5, 'pull': 0.1, 'batchwise': True}},
    functools.partial(adam, schedule=constant), 1.875e-3, epochs=5, batch_size=16,
    data=_TENS, **_COMMON,
    where=_where('l2p', 'options.l2p', get_optimizer=('recipe',)),
  ),
  'dualprompt': Preset(
    'dualprompt',
    {
      'dualprompt': {
        'general': 5, 'expert': 5, 'general_layers': [0, 1], 'expert_layers': [2, 3, 4],
        'pull': 0.1, 'transfer': True, 'batchwise': True, 'reshaped': True,
      },
    },
    functools.partial(adam, schedule=constant), 1e-3, epochs=5, batch_size=24,
    data=_TENS, **_COMMON,
    where={
      **_where(
        'dualprompt',
        *(f'options.dualprompt.{each}' for each in (
          'general', 'expert', 'general_layers', 'expert_layers', 'pull', 'transfer', 'batchwise',
        )),
        get_optimizer=('recipe',),
      ),
      'backbone/prompt.py, EPrompt': ('options.dualprompt.reshaped',),
    },
    departs=('experts of tasks not seen yet are never selected, there by their untrained keys',),
  ),
  'lae': Preset(
    'lae', {'lae': {'decay': 0.9999, 'frozen_share': 0.6}, 'prefix': {'length': 10}},
    functools.partial(adam, schedule=constant), 2.8125e-3, epochs=5, batch_size=128,
    peft='prefix', data=_TENS, **_COMMON,
    where=_where(
      'lae', 'options.lae', 'options.prefix', 'peft', get_optimizer=('recipe',),
    ),
    departs=('prefixes stand before the keys of all blocks, there of the first five',),
  ),
  'ease': Preset(
    'ease', {'ease': {'alpha': 0.1}, 'adaptformer': _ADAPTER},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.025, epochs=20, batch_size=48,
    peft='adaptformer', head='cosine', data='CIFAR-100, 20 tasks of 5 classes, seed 1993',
    **_COMMON,
    where={
      **_where(
        'ease', 'options.ease', 'options.adaptformer.width', get_optimizer=('recipe',),
      ),
      'backbone/vit_ease.py, get_new_adapter': ('peft', 'options.adaptformer.dropout'),
      'backbone/vit_ease.py, Block.forward': ('options.adaptformer.read',),
      'utils/inc_net.py, get_backbone': ('options.adaptformer.scale',),
      'utils/inc_net.py, EaseNet.generate_fc': ('head',),
    },
    departs=(_BY_STEP,),
  ),
  'mos': Preset(
    'mos',
    {
      'mos': {
        'merged': 0.1, 'contrast': 0.1, 'temperature': 0.8, 'rounds': 4, 'epochs': 30,
        'samples': 240, 'shrinkage': 1e-4,
      },
      'adaptformer': {'width': 16, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'},
    },
    functools.partial(slow_head, factor=0.1, weight_decay=5e-4), 0.03, epochs=20, batch_size=48,
    peft='adaptformer', data='CIFAR-100, 20 tasks of 5 classes, seed 1993', **_COMMON,
    where={
      **_where(
        'mos', 'options.mos.merged', 'options.mos.contrast', 'options.mos.epochs',
        'options.adaptformer.width',
        get_optimizer=('recipe',), orth_loss=('options.mos.temperature',),
        _eval_cnn=('options.mos.rounds',), classifer_align=('options.mos.samples',),
        _compute_mean=('options.mos.shrinkage',),
      ),
      'backbone/vit_mos.py, VisionTransformer.init_adapters': (
        'peft', 'options.adaptformer.dropout',
      ),
      'backbone/vit_mos.py, Block.forward': ('options.adaptformer.read',),
      'utils/inc_net.py, get_backbone': ('options.adaptformer.scale',),
    },
    departs=(
      _BY_STEP,
      'an adapter is merged with past ones after each update, there in each forward pass as well, '
      'once for each block; and there predictions change the adapters of past tasks in that way',
    ),
  ),
  'ranpac': Preset(
    'ranpac', {'ranpac': {'projection': 10_000}, 'adaptformer': _ADAPTER},
    functools.partial(sgd_with_l2, weight_decay=5e-4), 0.01, epochs=20, batch_size=48,
    peft='adaptformer', head='cosine', data=_TENS, **_COMMON,
    where={
      **_where(
        'ranpac', 'options.ranpac', 'options.adaptformer.width', _train=('recipe',),
      ),
      'backbone/vit_adapter.py, Block': (
        'peft', 'options.adaptformer.dropout', 'options.adaptformer.read',
      ),
      'utils/inc_net.py, get_backbone': ('options.adaptformer.scale',),
      'utils/inc_net.py, SimpleVitNet.generate_fc': ('head',),
    },
    departs=(_BY_STEP,),
  ),
  'slca': Preset(
    'slca', {'slca': {'epochs': 3, 'samples': 256, 'temperature': 0.1}},
    functools.partial(
      slow_backbone, factor=0.01, weight_decay=5e-4, schedule=milestones((18 / 20,))
    ), 0.01, epochs=20, batch_size=64, peft='full', data=_TENS, **_COMMON,
    where=_where(
      'slca', 'options.slca.epochs', 'options.slca.temperature',
      _stage1_training=('recipe', 'peft'), _stage2_compact_classifier=('options.slca.samples',),
    ),
  ),
  'cofima': Preset(
    'merged',
    {
      'merged': {'rule': 'fisher', 'start': 'merged', 'of': 'leaves'},
      'aligned': {'epochs': 3, 'samples': 256, 'temperature': 0.1},
    },
    functools.partial(
      slow_backbone, factor=0.01, weight_decay=5e-4, schedule=milestones((18 / 20,))
    ), 0.01, epochs=20, batch_size=64, peft='full', wrap=('aligned',), data=_TENS, **_COMMON,
    where=_where(
      'cofima', 'options.aligned.epochs', 'options.aligned.temperature',
      incremental_train=('options.merged', 'wrap'),
      _stage1_training=('recipe', 'peft'), _stage2_compact_classifier=('options.aligned.samples',),
    ),
    departs=(
      'Fisher information is of single examples, there of the mean gradients of batches',
      'the head is not merged, there it is for old classes',
    ),
  ),
}  # fmt: skip
