"""MaolinLuo/KeepLoRA at a17f9c2 (2026-02-28): the authors' code of KeepLoRA, with CLIP."""

import functools

from pecft_jax.presets.record import Preset, ValueRange
from pecft_jax.recipes import adam
from pecft_jax.schedules import cosine, warmup

PRESETS = {
  'keeplora': Preset(
    'keeplora',
    {
      'keeplora': {'threshold': 0.99, 'kept': 0.85, 'of_outputs': True},
      'lora': {'pattern': r'attn/(q|k|v|out)$', 'rank': 16, 'alpha': 1.0},
    },
    functools.partial(adam, weight_decay=0.01, schedule=warmup(0.3, cosine)), 1e-3, epochs=10,
    batch_size=64, peft='lora', views=None,
    value_range=ValueRange(
      (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    ),
    model='vit_base_patch16_clip_224.openai', data='MTIL, 11 data sets, order 1',
    source='MaolinLuo/KeepLoRA at a17f9c2',
    where={
      'MTIL/configs/keeplora_order1.yaml': (
        'learning_rate', 'epochs', 'batch_size', 'recipe', 'data', 'options.lora.pattern',
        'options.lora.rank', 'options.keeplora.threshold', 'options.keeplora.kept',
      ),
      'MTIL/model/peft_vit.py': ('model', 'peft', 'options.lora.alpha'),
      'MTIL/model/prin_subspace_helper.py': ('options.keeplora.of_outputs',),
      'MTIL/trainer/trainer.py': ('method',),
      'MTIL/clip/clip.py, _transform': ('value_range',),
    },
    departs=(
      "a head is trained, there CLIP's text encoder classifies and is trained the same way",
      'the rate rises along a line, there along half a cosine, and beta_1 stays at 0.9',
      'the last task has 5 epochs there',
      'one direction of the weights less is protected there',
      'inputs of all batches are added up there by their place in the batch, and then decomposed',
    ),
  ),
}  # fmt: skip
