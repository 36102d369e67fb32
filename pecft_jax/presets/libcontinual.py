"""RL-MIND/LibContinual at cc0519c (2026-08-21): a framework, with LoRA-Sub-DRS."""

from pecft_jax.presets.record import UNIT_RANGE, Preset
from pecft_jax.presets.views import parts
from pecft_jax.recipes import Recipe, adam, grouped
from pecft_jax.schedules import quarter_cosine


def _faster_head(learning_rate: float) -> Recipe:
  """Adam, with four times the rate for the head."""
  return grouped(adam(learning_rate, schedule=quarter_cosine), {'^head': 4.0})


PRESETS = {
  'lorasub': Preset(
    'lorasub',
    {
      'lorasub': {
        'threshold': 0.99, 'strength': 0.05, 'margin': 1.0, 'divided': True, 'outputs': True,
      },
      'lora': {'pattern': r'attn/(k|v)$', 'rank': 10, 'alpha': 10.0},
    },
    _faster_head, 5e-4, epochs=20, batch_size=128, peft='lora', views=parts,
    value_range=UNIT_RANGE, model='vit_base_patch16_224_in21k',
    data='CIFAR-100, 10 tasks of 10 classes', source='RL-MIND/LibContinual at cc0519c',
    where={
      'config/zz_LoRA-Sub-DRS/lora_sub-cifar100-b10-10-10.yaml': (
        'method', 'learning_rate', 'epochs', 'batch_size', 'data', 'model', 'views', 'value_range',
        'recipe', 'options.lora.rank', 'options.lorasub.strength', 'options.lorasub.margin',
      ),
      'core/model/lora_sub.py': (
        'options.lorasub.threshold', 'options.lorasub.divided', 'options.lorasub.outputs',
      ),
      'core/model/backbone/transformer.py, MultiHeadAttention_LoRA_Sub': (
        'peft', 'options.lora.pattern', 'options.lora.alpha',
      ),
    },
    departs=(
      'the rate follows its schedule by step, there by epoch, and the first two are at the full '
      'rate',
      'moments and class means are of images as they are, there of augmented ones',
    ),
  ),
}  # fmt: skip
