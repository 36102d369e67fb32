"""The bench of transforms: what the model forgets is measured as it says."""

import importlib.util
import pathlib
import sys

import jax
import numpy as np

from pecft_jax import data
from pecft_jax.backbones import decoder, pretrained
from pecft_jax.files import write_json
from pecft_jax.peft import full, lora
from pecft_jax.typing import Pretrained

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'transforms.py'
SPEC = importlib.util.spec_from_file_location('transforms', FILE)
transforms = importlib.util.module_from_spec(SPEC)
sys.modules['transforms'] = transforms
SPEC.loader.exec_module(transforms)


def test_the_frozen_model_knows_digits_and_a_spoilt_one_fewer():
  model = pretrained('vit_glyphs16')
  train, test = (data.first_per_class(each, 10) for each in data.digits(16))
  peft = lora(r'attn/(q|v)$', rank=2)
  delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  knows = lambda delta: transforms.nearest_mean(model, train, test, peft, delta)
  assert knows(delta) > 80
  assert knows(jax.tree.map(lambda leaf: leaf + 1, delta)) < 60


def test_loss_is_that_of_each_next_token_that_is_no_padding():
  backbone = decoder(
    vocabulary=11, length=6, width=8, depth=1, heads=2, kv_heads=1, hidden=12
  )  # fmt: skip
  model = Pretrained(backbone, backbone.init(jax.random.key(0)))
  pad = backbone.inputs.pad
  tokens = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, pad, pad, pad]], np.int32)
  source = data.arrays('texts', tokens, [0, 0], ['text'])
  peft = full()
  delta = peft.init(jax.random.key(1), backbone.sites, model.params)
  states = np.asarray(backbone.apply(model.params, tokens, rows=None).tokens, np.float64)
  logits = states @ np.asarray(model.params['embed']['table'], np.float64).T
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  told = [(0, t) for t in range(5)] + [(1, t) for t in range(2)]
  want = -np.mean([np.log(p[b, t, tokens[b, t + 1]]) for b, t in told])
  np.testing.assert_allclose(
    transforms.next_token_loss(model, source, peft, delta), want, rtol=1e-5
  )


def test_the_table_has_a_row_for_each_that_has_ended(tmp_path):
  flags = transforms.parsed(['images', '--out', str(tmp_path)])
  one = {
    'rate': 0.01, 'at_edge': True, 'trained': 1000, 'accuracy': 0.5, 'images_per_second': 50.0,
    'peak_bytes': 10**9, 'base': 40.0,
  }  # fmt: skip
  for name, fields in {
    'lora': one,
    'ia3': {**one, 'accuracy': 0.6, 'images_per_second': 100.0},
  }.items():
    (tmp_path / name).mkdir()
    write_json(tmp_path / name / 'measured.json', fields)
  transforms.write_table(flags)
  rows = (tmp_path / 'transforms.md').read_text().splitlines()[4:6]
  assert rows[0].startswith('| `ia3` | 1 k | 60.0 | 40.00 | 1.00 |')
  assert rows[1].startswith('| `lora` | 1 k | 50.0 | 40.00 | 2.00 |')
  assert rows[1].endswith('0.01 (edge) |')
