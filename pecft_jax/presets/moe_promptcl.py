"""Minhchuyentoancbn/MoE_PromptCL at e418337 (2025-08-01): the authors' code of NoRGa."""

import functools

from pecft_jax.presets.hide import slow_head
from pecft_jax.presets.record import CIFAR_RANGE, Preset
from pecft_jax.presets.views import parts_and_brightness
from pecft_jax.schedules import milestones

PRESETS = {
  'norga': Preset(
    'hide_prompt',
    {
      'hide_prompt': {
        'blend': 0.01, 'contrast': 0.1, 'temperature': 0.8, 'epochs': 80, 'samples': 640,
        'identity_epochs': 20,
      },
      'gated_prefix': {'pattern': r'block_[0-4]/attn$', 'length': 5, 'gate': 'sigmoid'},
    },
    functools.partial(slow_head, schedule=milestones([0.6])), 0.015, epochs=50, batch_size=128,
    peft='gated_prefix', views=parts_and_brightness, value_range=CIFAR_RANGE,
    model='vit_base_patch16_224', data='CIFAR-100, 10 tasks of 10 classes',
    source='Minhchuyentoancbn/MoE_PromptCL at e418337',
    where={
      'scripts/cifar100_Sup21k_NoRGa.sh': (
        'method', 'epochs', 'batch_size', 'model', 'options.hide_prompt.blend',
        'options.hide_prompt.contrast', 'options.hide_prompt.identity_epochs',
        'options.gated_prefix.length', 'options.gated_prefix.gate', 'data',
      ),
      'configs/cifar100_norgaprompt.py': (
        'recipe', 'learning_rate', 'options.gated_prefix.pattern', 'options.hide_prompt.epochs',
      ),
      'attention.py, NoRGa_Attention': ('peft',),
      'engines/norga_prompt_engine.py': (
        'options.hide_prompt.temperature', 'options.hide_prompt.samples',
      ),
      'datasets.py, build_cifar_transform': ('views', 'value_range'),
    },
    departs=(
      'gates are part of the delta of each task, there those of the first task serve all',
      'the rate is written out: there 0.03, times 128 / 256; it follows its schedule by step, '
      'there by epoch',
      'prefixes start from normal numbers, there uniform in -1..1',
      'heads are aligned with a rate of 0.005, there 0.05; the one that finds the task for 80 '
      'epochs, there 30',
      'the head that finds the task reads frozen features, there through two trained layers',
    ),
  ),
}  # fmt: skip
