"""Small runs on backbones of the library, with their test sets as files."""

import csv
import pathlib
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TRAINING, silent

from pecft_jax import backbones, continual, data
from pecft_jax.data import Source
from pecft_jax.train import Experiment, run

NAMES = ('plain', 'with, comma', 'say "é"', '-dash')
SIZES = {'depth': 1, 'width': 8, 'heads': 2}


class Taught(NamedTuple):
  """A run that has ended, and its test set."""

  workdir: pathlib.Path
  test: Source
  folder: pathlib.Path  # Of the test set, one folder for each class.
  table: pathlib.Path
  arrays: pathlib.Path


def drawn(count, seed):
  """Grey images of 4 x 4 whose brightness is that of their class, and is noisy."""
  rng = np.random.default_rng(seed)
  labels = np.arange(len(NAMES)).repeat(count)
  shades = rng.normal(30 + 60 * labels, 25).clip(0, 255)
  images = np.broadcast_to(shades[:, None, None, None], (len(labels), 4, 4, 1))
  images = (images + rng.normal(0, 10, images.shape)).clip(0, 255)
  return data.arrays('shades', images.astype(np.uint8), labels, NAMES)


@pytest.fixture(scope='session')
def taught(tmp_path_factory):
  root = tmp_path_factory.mktemp('taught')
  train, test = drawn(6, 0), drawn(5, 1)
  model = backbones.random_weights('vit_glyphs16', image_size=4, **SIZES)
  scenario = data.class_incremental(train, test, tasks=2, order=[2, 0, 3, 1])
  method = continual.simplecil(model.backbone, scenario.capacity)
  run(Experiment(model, scenario, method, TRAINING), root / 'run', silent(keep_tasks=True))
  found = Taught(root / 'run', test, root / 'test', root / 'test.csv', root / 'test.npz')
  rows = []
  for i, (image, label) in enumerate(zip(test.inputs, test.labels, strict=True)):
    name = f'test/{NAMES[label]}/{i}.png'
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(root / name)
    rows.append((name, NAMES[label]))
  with found.table.open('w', encoding='utf-8', newline='') as file:
    csv.writer(file).writerows([('path', 'label'), *rows])
  np.savez(found.arrays, images=test.inputs, labels=test.labels, class_names=NAMES)
  return found


WORDS = {'?': 0, 'good': 1, 'bad': 2, 'very': 3, 'dull': 4}
PAD = 5


@pytest.fixture(scope='session')
def reader(tmp_path_factory):
  """A run that classifies texts: its work directory, and the tokenizer."""
  tokenizers = pytest.importorskip('tokenizers')
  root = tmp_path_factory.mktemp('reader')
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token='?'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.save(str(root / 'tokenizer.json'))
  (root / 'texts.csv').write_text(
    'text,label\nvery good,praise\ngood,praise\nbad,complaint\n"very, very dull",complaint\n'
  )
  sizes = {'vocabulary': 6, 'kv_heads': 1, 'hidden': 6, 'length': 5, 'pad': PAD}
  model = backbones.random_weights('llama_3.2_1b', **SIZES, **sizes)
  source = data.text_table(root / 'texts.csv', root / 'tokenizer.json', length=5, pad=PAD)
  scenario = data.class_incremental(source, source, tasks=2)
  method = continual.simplecil(model.backbone, scenario.capacity)
  training = TRAINING._replace(batch_size=2)
  run(Experiment(model, scenario, method, training), root / 'run', silent())
  return root
