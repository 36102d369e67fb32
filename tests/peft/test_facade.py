"""Trained parameters of the registered transforms on a ViT-B/16, against published tables."""

import functools

import jax
import pytest

from pecft_jax.backbones.families.vit.model import vit
from pecft_jax.peft import PEFTS, at_layers, prefix, split_kept


@functools.cache
def model():
  half = (0.5,) * 3
  return vit(image_size=224, patch=16, width=768, depth=12, heads=12, mean=half, std=half)


def count(peft):
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(model().init, key)
  delta = jax.eval_shape(lambda k, p: peft.init(k, model().sites, p), key, params)
  return sum(leaf.size for leaf in jax.tree.leaves(split_kept(delta)[0]))


@pytest.mark.parametrize(
  ('name', 'options', 'expected'),
  [
    ('lora', {}, 294_912),
    ('dora', {}, 294_912 + 24 * 768),
    ('vera', {}, 24 * (256 + 768)),
    ('loha', {}, 24 * 2 * 8 * (768 + 768)),
    ('lokr', {}, 24 * (24 * 24 + 8 * (32 + 32))),
    ('krona', {}, 24 * (24 * 24 + 32 * 32)),
    ('oft', {}, 24 * 768 * 31 // 2),
    ('boft', {}, 24 * (768 * 4 + 768)),
    ('hra', {}, 24 * 8 * 768),
    ('c3a', {}, 24 * 768 * 768 // 256),
    ('fourierft', {'count': 3000}, 72_000),
    ('pissa', {}, 294_912),
    ('lora_xs', {}, 24 * 8**2),
    ('lora_fa', {}, 294_912 // 2),
    ('delora', {}, 294_912 + 24),
    ('osf', {}, 24 * 384 * (2 * 768 + 1)),
    ('lily', {}, 2 * (12 * 768 * 32 + 2 * 32 * 768 + 12 * 32 * 2)),
    ('lily', {'stride': 5}, 2 * (3 * 768 * 32 + 2 * 32 * 768 + 12 * 32 * 2)),
    ('svft', {}, 24 * 768),
    ('hira', {}, 4 * 294_912),
    ('miss', {}, 24 * 64 * 768),
    ('randlora', {}, 24 * 24 * (32 + 768)),
    ('compacter', {}, 4**3 + 24 * (2 * (768 + 24) + 24 + 768)),
    ('compacter_pp', {}, 4**3 + 12 * (2 * (768 + 24) + 24 + 768)),
    ('invertible', {}, 2 * (2 * 384 * 192 + 192 + 384)),
    ('loreft', {}, 12 * (2 * 4 * 768 + 4)),
    ('llama_adapter', {}, 12 * (2 * 10 * 768 + 1)),
    ('gated_prefix', {}, 12 * (2 * 10 * 768 + 2)),
    ('mam', {}, 12 * (2 * 30 * 768 + 2 * 512 * 768 + 512 + 768)),
    ('unipelt', {}, 12 * (2 * (2 * 8 * 768 + 769) + 2 * 10 * 768 + 769 + 2 * 48 * 768 + 48 + 1537)),
    ('p_tuning', {}, 10 * 768 + 3 * (768**2 + 768)),
    ('prefix_mlp', {}, 10 * 768 + 769 * 512 + 12 * 2 * 513 * 768),
    ('pfeiffer', {'width': 64}, 1_189_632),
    ('adaptformer', {}, 1_189_632),
    ('houlsby', {'width': 64}, 2 * 1_189_632),
    ('vpt_deep', {}, 460_800),
    ('vpt_shallow', {}, 50 * 768),
    ('ia3', {}, 12 * (768 + 768 + 3072)),
    ('ssf', {}, 205_824),
    ('bitfit', {}, 102_912),
    ('ln_tuning', {}, 25 * 2 * 768),
    ('linear_probe', {}, 0),
    ('full', {}, 85_798_656),
    ('child_tuning_f', {}, 85_798_656),
    ('child_tuning_d', {}, round(0.3 * 12 * (12 * 768**2 + 13 * 768))),
    ('diff_pruning', {}, 2 * 85_798_656 + 198),
    ('lottery_ticket', {}, 85_798_656),
    ('migu', {}, 12 * 12 * 768**2 + 768**2),
    ('trainable_tokens', {'tokens': (3, 4), 'table': '^pos$'}, 2 * 768),
  ],
)
def test_counts(name, options, expected):
  assert count(PEFTS[name](**options)) == expected


def test_count_of_prefixes_in_the_first_layers():
  assert count(at_layers(prefix(length=10), range(5))) == 76_800
