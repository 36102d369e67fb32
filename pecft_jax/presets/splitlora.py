"""iLearn-Lab/ICLR26-SplitLoRA at 1d7b488 (2026-04-06): the authors' code of SplitLoRA."""

from pecft_jax.data import Augmentation, random_resized_crop
from pecft_jax.presets.record import Preset, ValueRange
from pecft_jax.recipes import Recipe, adam, grouped
from pecft_jax.schedules import milestones


def _faster_head(learning_rate: float) -> Recipe:
  """AdamW, with ten times the rate for the head."""
  own = adam(learning_rate, weight_decay=5e-5, schedule=milestones((0.5, 0.8)))
  return grouped(own, {'^head': 10.0})


def _crops(side: int) -> Augmentation:
  del side
  return random_resized_crop()


PRESETS = {
  'splitlora': Preset(
    'splitlora',
    {
      'splitlora': {'balance': 20.0, 'temperature': 30.0},
      'lora': {'pattern': r'attn/(k|v)$', 'rank': 10, 'alpha': 10.0},
    },
    _faster_head, 1e-3, epochs=100, batch_size=256, peft='lora', views=_crops,
    value_range=ValueRange((0.5,), (0.5,)), model='vit_base_patch16_224.augreg2_in21k_ft_in1k',
    data='CIFAR-100, 10 tasks of 10 classes, seed 0',
    source='iLearn-Lab/ICLR26-SplitLoRA at 1d7b488',
    where={
      'reproduce.py': (
        'learning_rate', 'epochs', 'batch_size', 'model', 'data', 'options.lora.rank',
        'options.splitlora',
      ),
      'train_splitlora.py': ('method', 'recipe'),
      'lora/utils.py, LoRALayer': ('options.lora.pattern', 'options.lora.alpha', 'peft'),
      'utils/dataset_builder.py, define_dataset': ('views', 'value_range'),
    },
    departs=(
      'AutoAugment comes before the crop there',
      'epochs are 10 times its 10, each of which visits all examples 10 times',
      'moments are of images as they are, there of augmented ones',
      'at least one direction of a site is never minor, there two',
    ),
  ),
}  # fmt: skip
