"""danielm1405/magmax at 4f49f18 (2024-07-29): the authors' code of MagMax."""

import functools

from pecft_jax.presets.record import CLIP_RANGE, Preset
from pecft_jax.presets.views import most_of_it
from pecft_jax.recipes import adam
from pecft_jax.schedules import cosine, warmup

PRESETS = {
  'magmax': Preset(
    'merged', {'merged': {'rule': 'magmax', 'start': 'last', 'of': 'leaves', 'scale': 0.5}},
    # 500 of the 790 updates of a task.
    functools.partial(adam, weight_decay=0.1, clip=1.0, schedule=warmup(500 / 790, cosine)), 1e-5,
    epochs=10, batch_size=128, peft='full', views=most_of_it,
    value_range=CLIP_RANGE, model='vit_base_patch16_clip_224.openai',
    data='CIFAR-100, 5 tasks of 20 classes, seed 5',
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
