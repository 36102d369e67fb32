"""yunyounglee99/C-ADA at d7b7731 (2025-03-27): C-ADA, whose authors published no code."""

from pecft_jax.presets.record import CIFAR_RANGE, Preset
from pecft_jax.presets.views import flips
from pecft_jax.recipes import adam

PRESETS = {
  'cada': Preset(
    'cada',
    {
      'cada': {'orthogonality': 1.0, 'side': 'both', 'masked': True},
      'adaptformer': {'width': 20, 'scale': 0.1},
    },
    adam, 5e-5, epochs=20, batch_size=128, views=flips, value_range=CIFAR_RANGE,
    model='vit_base_patch16_224_in21k', data='CIFAR-100, 10 tasks of 10 classes in order',
    peft='adaptformer', source='yunyounglee99/C-ADA at d7b7731',
    where={
      'config.yaml': (
        'method', 'epochs', 'batch_size', 'learning_rate', 'options.cada.orthogonality',
        'options.adaptformer.width',
      ),
      'main.py': ('views', 'value_range', 'data', 'model'),
      'train/incremental_train.py': ('recipe', 'options.cada.masked'),
      'models/orthogonal_loss.py': ('options.cada.side',),
      'models/vit.py, ViTBlockWithCADA': ('peft', 'options.adaptformer.scale'),
    },
    departs=(
      'slices are beside the MLPs of all blocks; there of the first five, and beside their '
      'attention as well, with a width of 40',
      'a scale and shift for each site, there for each block',
      'slices start from zero, there from orthonormal directions',
      'the penalty counts each pair of slices of a block once; there those of different blocks as '
      'well, and all of them many times',
      'the rate ends at zero, there at 1e-5 by a schedule that is never stepped',
    ),
  ),
}  # fmt: skip
