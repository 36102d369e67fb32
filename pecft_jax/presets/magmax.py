"""danielm1405/magmax at 4f49f18 (2024-07-29): the authors' code of MagMax."""

import functools

from pecft_jax.data.augment import Augmentation, random_resized_crop
from pecft_jax.presets.record import Preset, ValueRange
from pecft_jax.recipes import adam
from pecft_jax.schedules import cosine, warmup


def most_of_it(side: int) -> Augmentation:
  """A random resized crop of 90 % to 100 % of the area, without flips.

  >>> most_of_it(224).settings['scale']
  [0.9, 1.0]
  """
  del side
  return random_resized_crop(scale=(0.9, 1.0))


PRESETS = {
  'magmax': Preset(
    'merged', {'merged': {'rule': 'magmax', 'start': 'last', 'of': 'leaves', 'scale': 0.5}},
    # 500 of the 790 updates of a task.
    functools.partial(adam, weight_decay=0.1, clip=1.0, schedule=warmup(500 / 790, cosine)), 1e-5,
    epochs=10, batch_size=128, peft='full', views=most_of_it,
    value_range=ValueRange(
      (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    model='vit_base_patch16_clip_224.openai', data='CIFAR-100, 5 tasks of 20 classes, seed 5',
    source='danielm1405/magmax at 4f49f18',
    where={
      'scripts/CIL/all.sh and finetune_seq.sh': (
        'epochs', 'model', 'data', 'options.merged.start',
      ),
      'finetune_splitted.py': ('batch_size', 'learning_rate', 'recipe', 'peft'),
      'merge_splitted.py, search_evaluate_merging': ('method', 'options.merged.scale'),
      'src/merging/task_vectors.py, merge_max_abs': ('options.merged.rule', 'options.merged.of'),
      'src/modeling.py, ImageEncoder, by open_clip': ('views', 'value_range'),
    },
    departs=('a head is trained, there it is fixed and made of the names of classes by CLIP',),
  ),
}  # fmt: skip
