"""Tests of the rendered letters and of the backbone that was trained on them."""

import json
import pathlib
import sys
import unicodedata

import chex
import jax
import numpy as np
import pytest

from pecft_jax import data
from pecft_jax.backbones import pretrained, random_weights, vit

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'experiments'))
import glyphs
import pretrain_glyphs

LIKE_DIGITS = 'OoQDlIiJBgSsОоοΟІӀıЗзбв'
TWINS = 'ΑАΕЕΜМХΧ'  # Greek and Cyrillic letters that look like Latin ones.
CARD = pretrain_glyphs.CARDS / 'vit_glyphs16.json'


@pytest.fixture(scope='module')
def some():
  """A few letters, digits and letters that look like digits or like each other."""
  return glyphs.load_glyphs(among='0123456789ACEFHKMNRXYbdfhkmpry' + LIKE_DIGITS + TWINS)


def draw(some, seed=0, count=64):
  rng = np.random.default_rng(seed)
  return glyphs.render(rng, some, rng.choice(len(some.label), count))


@pytest.mark.parametrize('char', '0123456789²₃½٣९Ⅷⅻ①❷➂⓿０𝟘㈠〇ↁƻƼƨ')
def test_no_form_of_a_digit_is_a_candidate(char):
  assert not glyphs.is_candidate(char)


def test_nothing_with_a_numeric_value_is_a_candidate():
  numeric = [
    chr(code) for code in range(0x20000) if unicodedata.numeric(chr(code), None) is not None
  ]
  assert len(numeric) > 1000
  assert not any(map(glyphs.is_candidate, numeric))


def test_digits_and_what_looks_like_them_are_left_out(some):
  assert not set(some.characters) & set('0123456789' + LIKE_DIGITS)
  assert {'A', 'E', 'K', 'b', 'd', 'k'} <= set(some.characters)


def test_letters_of_one_look_are_one_class(some):
  assert not set(some.characters) & set(TWINS)


def test_every_letter_has_several_shapes(some):
  assert np.bincount(some.label, minlength=len(some.characters)).min() >= 5


def test_drawings_have_the_values_of_digits(some):
  drawings = draw(some, count=512)
  assert drawings.shape == (512, 8, 8)
  assert drawings.dtype == np.uint8
  assert set(np.unique(drawings)) == set(range(17))
  assert (drawings.max((1, 2)) >= 8).all()
  real = next(iter(data.digits(8))).inputs
  ink = np.asarray(real[np.arange(512)]).mean() / 255
  assert abs(drawings.mean() / 16 - ink) < 0.1


def test_a_seed_repeats_its_drawings(some):
  np.testing.assert_array_equal(draw(some), draw(some))
  assert (draw(some) != draw(some, seed=1)).any()


def test_drawings_of_one_shape_vary_around_it(some):
  index = np.zeros(32, int)
  plain = glyphs.render(None, some, index)
  assert (plain == plain[0]).all()
  varied = glyphs.render(np.random.default_rng(0), some, index)
  assert len(np.unique(varied.reshape(32, -1), axis=0)) == 32
  assert np.corrcoef(varied.mean(0).ravel(), plain[0].ravel())[0, 1] > 0.7


def test_a_wider_pen_leaves_more_ink(some):
  index = np.arange(64)
  thin, thick = (
    glyphs.render(np.random.default_rng(0), some, index, glyphs.Pen(half_width=(w, w))).sum()
    for w in (1.7, 3.0)
  )
  assert thick > 1.2 * thin


def test_drawings_are_enlarged_as_the_digits_are():
  small, large = (next(iter(data.digits(size))) for size in (8, 16))
  rows = np.arange(50)
  ink = np.round(np.asarray(small.inputs[rows])[..., 0] * (16 / 255))
  np.testing.assert_array_equal(glyphs.enlarge(ink), large.inputs[rows])


def test_held_out_letters_are_not_trained_on(monkeypatch, some):
  monkeypatch.setattr(pretrain_glyphs, 'load_glyphs', lambda: some)
  letters = pretrain_glyphs.load_letters()
  trained, held_out = (set(some.label[rows]) for rows in (letters.train, letters.held_out))
  assert not trained & held_out
  assert trained | held_out == set(range(len(some.characters)))
  assert set(letters.label[letters.train]) == set(range(letters.classes))


@pytest.mark.slow
def test_training_repeats(monkeypatch, some):
  monkeypatch.setattr(pretrain_glyphs, 'load_glyphs', lambda: some)
  letters = pretrain_glyphs.load_letters()
  sizes = {**pretrain_glyphs.ARCHITECTURE, 'depth': 1, 'width': 12}
  backbone = vit(**sizes, mean=(0.2,), std=(0.3,))
  key = jax.random.key(0)
  head = jax.random.normal(key, (backbone.width, letters.classes))
  params = {'backbone': backbone.init(key), 'head': head}
  first, again = (
    pretrain_glyphs.train(backbone, letters, params, steps=2, batch=4, rate=0.1, seed=0)
    for _ in range(2)
  )
  chex.assert_trees_all_equal(first, again)
  assert (first['head'] != head).any()


def test_the_card_fits_its_weights():
  model = pretrained('vit_glyphs16')  # Raises unless sha256, names and shapes agree.
  card = json.loads(CARD.read_text(encoding='utf-8'))
  assert model.identity['backbone_sha256'] == card['sha256']
  assert model.backbone.inputs.shape == (16, 16, 1)
  assert card['architecture'] == pretrain_glyphs.ARCHITECTURE
  assert card['accuracy']['digits']['pretrained']['nearest_mean'] >= 0.9


def test_training_saw_no_digit():
  seen = json.loads(CARD.read_text(encoding='utf-8'))['data']
  letters = seen['trained_letters'] + seen['held_out_letters']
  assert len(letters) > 400
  assert all(map(glyphs.is_candidate, letters))
  assert not set(letters) & set(LIKE_DIGITS)


@pytest.mark.slow
def test_frozen_features_tell_digits_apart_far_better_than_random_ones():
  def nearest_mean(model):
    embed = jax.jit(lambda x: pretrain_glyphs.features(model.backbone, model.params, x))
    pairs = []
    for source in data.digits(16):
      rows = np.arange(len(source.labels))
      pairs.append((np.asarray(embed(source.inputs[rows])), source.labels))
    return pretrain_glyphs.nearest_mean(*pairs)

  trained = nearest_mean(pretrained('vit_glyphs16'))
  fresh = nearest_mean(random_weights('vit_glyphs16'))
  assert trained >= 0.9
  assert trained > fresh + 0.2
