"""arazd/ProgressivePrompts at 01572d6 (2023-04-24): the authors' code, on texts."""

import functools

from pecft_jax.presets.record import Preset
from pecft_jax.recipes import adam
from pecft_jax.schedules import constant

PRESETS = {
  'progressive_prompts': Preset(
    'progressive_prompts', {'progressive_prompts': {'length': 10}},
    functools.partial(adam, schedule=constant, weight_decay=1e-5), 0.3, epochs=10, batch_size=8,
    views=None, value_range=None, model='t5-large',
    data='imdb, cb, sst2, dbpedia, at most 1000 examples of a class',
    source='arazd/ProgressivePrompts at 01572d6',
    where={
      'README.md, T5': (
        'method', 'options.progressive_prompts.length', 'learning_rate', 'epochs', 'model', 'data',
      ),
      'T5_codebase/train_t5_cl.py': ('batch_size',),
      'T5_codebase/t5_continual.py, get_optimizer': ('recipe',),
    },
    departs=(
      'a head classifies a feature, there T5 writes the label',
      'the last prompt of a task is kept, there the best one on held-out data',
      'prompts start from small random numbers, there from embeddings of random words',
    ),
  ),
}  # fmt: skip
