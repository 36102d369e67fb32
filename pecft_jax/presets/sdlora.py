"""WuYichen-97/SD-Lora-CL at 8bacded (2025-06-26): the authors' code of SD-LoRA."""

from pecft_jax.presets.record import UNIT_RANGE, Preset, sgd_with_l2
from pecft_jax.presets.views import parts_from_a_twentieth
from pecft_jax.schedules import constant


def _plain_sgd(learning_rate: float):
  return sgd_with_l2(learning_rate, schedule=constant)


PRESETS = {
  'sdlora': Preset(
    'sdlora',
    {'sdlora': {'start': 0.8, 'handed': False}, 'lora': {'rank': 10, 'alpha': 10.0}},
    _plain_sgd, 8e-3, epochs=20, batch_size=128, peft='lora',
    views=parts_from_a_twentieth, value_range=UNIT_RANGE, model='vit_base_patch16_224',
    data='CIFAR-100, 10 tasks of 10 classes, shuffled', source='WuYichen-97/SD-Lora-CL at 8bacded',
    where={
      'exps/sdlora_c100.json': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'data',
      ),
      'models/sdlora.py, _train': ('recipe',),
      'models/sdlora.py, update_network': ('model', 'options.lora'),
      'backbone/lora.py, LoRA_ViT_timm': ('peft', 'options.sdlora'),
      'utils/data.py, build_transform': ('views', 'value_range'),
    },
  ),
}  # fmt: skip
