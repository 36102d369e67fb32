import json

import jax
import numpy as np
import pytest

from pecft_jax.backbones import architecture, cards, pretrained, read_card, save_llama, save_timm


@pytest.fixture
def card(tmp_path, tiny, params, sizes):
  digest = save_timm(tmp_path / 'weights.safetensors', tiny, params)
  architecture = {k: v for k, v in sizes.items() if k not in ('mean', 'std')}
  content = {
    'name': 'tiny', 'summary': 'for tests', 'family': 'vit', 'architecture': architecture,
    'mean': sizes['mean'], 'std': sizes['std'], 'file': 'weights.safetensors', 'sha256': digest,
  }  # fmt: skip
  path = tmp_path / 'tiny.json'
  path.write_text(json.dumps(content))
  return path


def test_a_card_gives_backbone_and_weights(card, params):
  found = pretrained(card)
  jax.tree.map(np.testing.assert_array_equal, found.params, params)
  assert found.backbone.inputs.mean == (0.4, 0.5)
  assert found.identity['backbone_sha256'] == read_card(card).sha256


def test_weights_that_are_not_the_cards_are_refused(card, tmp_path, tiny):
  save_timm(tmp_path / 'other.safetensors', tiny, tiny.init(jax.random.key(9)))
  with pytest.raises(ValueError, match='not the checkpoint that the card tiny describes'):
    pretrained(card, tmp_path / 'other.safetensors')


def test_a_card_without_weights_asks_for_them():
  with pytest.raises(ValueError, match='comes without weights'):
    pretrained('vit_base_patch16_224')


def test_an_unknown_card_suggests_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'vit_base_patch16_224'"):
    pretrained('vit_base_patch16')


def test_a_file_that_is_no_card_is_refused(tmp_path):
  (tmp_path / 'x.json').write_text('{"name": "x"}')
  with pytest.raises(ValueError, match='is no checkpoint card'):
    read_card(tmp_path / 'x.json')


@pytest.mark.parametrize('name', sorted(cards()))
def test_every_card_of_the_library_can_be_built(name):
  card = cards()[name]
  backbone = architecture(name)
  shapes = jax.eval_shape(backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
  assert card.summary
  assert {'vit': 'patch', 'decoder': 'embed'}[card.family] in shapes
  lengths = {len(values) for values in card.ranges.values()}
  assert lengths == ({card.architecture['channels']} if card.ranges else set())
  assert backbone.name == name


@pytest.mark.parametrize(
  ('name', 'published', 'head'),
  [
    ('llama_3.2_1b', 1_235_814_400, 0),  # Its head is the embedding.
    ('llama_2_7b', 6_738_415_616, 32_000 * 4096),
    ('llama_2_70b', 68_976_648_192, 32_000 * 8192),
  ],
)
def test_llamas_have_as_many_weights_as_published(name, published, head):
  init = architecture(name, scan=True).init
  shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + head == published


def test_options_go_before_what_the_card_says():
  assert architecture('llama_2_7b', length=512).inputs.shape == (512,)


def test_a_card_of_a_decoder_gives_backbone_and_weights(
  tmp_path, tiny_decoder, decoder_params, decoder_sizes
):
  digest = save_llama(tmp_path / 'weights.safetensors', tiny_decoder, decoder_params)
  content = {
    'name': 'reader', 'summary': 'for tests', 'family': 'decoder', 'architecture': decoder_sizes,
    'file': 'weights.safetensors', 'sha256': digest,
  }  # fmt: skip
  (tmp_path / 'reader.json').write_text(json.dumps(content))
  found = pretrained(tmp_path / 'reader.json', length=12)
  jax.tree.map(np.testing.assert_array_equal, found.params, decoder_params)
  assert (found.backbone.inputs.shape, found.backbone.inputs.pad) == ((12,), 36)
  assert found.identity['backbone_sha256'] == digest


def test_an_unknown_family_is_refused(card):
  content = json.loads(card.read_text())
  card.write_text(json.dumps({**content, 'family': 'vitt'}))
  with pytest.raises(ValueError, match="unknown backbone family 'vitt'; did you mean 'vit'"):
    read_card(card)


def test_a_card_of_images_needs_their_range(card):
  content = json.loads(card.read_text())
  card.write_text(json.dumps({key: value for key, value in content.items() if key != 'std'}))
  with pytest.raises(ValueError, match=r"is no checkpoint card: KeyError\('std'\)"):
    read_card(card)
