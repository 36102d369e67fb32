"""JiazuoYu/MoE-Adapters4CL at 4572d97 (2024-08-30): the authors' code of MoE-Adapters."""

import functools

from pecft_jax.presets.record import CLIP_RANGE, Preset
from pecft_jax.presets.views import most_of_it
from pecft_jax.recipes import adam
from pecft_jax.schedules import cosine, warmup

PRESETS = {
  'moe_adapters': Preset(
    'moe_adapters',
    {
      'moe_adapters': {
        'experts': 22, 'top_k': 2, 'freeze': 2, 'hidden': 100, 'read': 'residual',
        'batchwise': True,
      },
      'adaptformer': {'width': 64, 'scale': 0.1, 'dropout': 0.1, 'read': 'residual'},
    },
    functools.partial(adam, schedule=warmup(0.1, cosine)), 1e-3, epochs=1, batch_size=64,
    peft='adaptformer', views=most_of_it,
    value_range=CLIP_RANGE, model='vit_base_patch16_clip_224.openai',
    data='MTIL, 11 data sets of 10 to 397 classes, one a task',
    source='JiazuoYu/MoE-Adapters4CL at 4572d97',
    where={
      'mtil/scripts/train/train_full_shot_router11_experts22_1000iters.sh': (
        'method', 'options.moe_adapters.experts', 'learning_rate', 'data',
      ),
      'mtil/src/args.py': (
        'options.moe_adapters.top_k', 'options.adaptformer.width', 'batch_size', 'model',
      ),
      'mtil/src/models/finetune.py': ('recipe', 'options.moe_adapters.freeze'),
      'mtil/src/models/finetune.py, 1000 updates: an epoch of 64,000 images': ('epochs',),
      'mtil/src/models/AutoEncoder.py, Autoencoder': ('options.moe_adapters.hidden',),
      'mtil/src/models/evaluation.py, zeroshot_eval': ('options.moe_adapters.batchwise',),
      'mtil/clip/model.py, ResidualAttentionBlock': (
        'peft', 'options.moe_adapters.read', 'options.adaptformer.scale',
        'options.adaptformer.dropout', 'options.adaptformer.read',
      ),
      'mtil/clip/clip.py, _transform': ('views', 'value_range'),
    },
    departs=(
      'a vision transformer with a trained head, there both towers of CLIP, with experts in each',
      'a task has an epoch, there 1000 updates',
      'the rate is 1e-3 for each task, there 1e-4, 1e-3 or 5e-3 by data set',
      'labels are not smoothed, there by 0.2',
      'autoencoders read the pooled feature, there a convolution of AlexNet; there is none of '
      'reference data, and no threshold, there 0.0655 of these features',
      'experts are counted in a pass after training, without noise, there in every update',
    ),
  ),
}  # fmt: skip
