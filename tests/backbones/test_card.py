import json

import chex
import jax
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
  chex.assert_trees_all_equal(found.params, params)
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


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': None}, 'expected text for name, got None'),
    ({'summary': 3}, 'expected text for summary, got 3'),
    ({'family': ['vit']}, r"expected text for family, got \['vit'\]"),
    ({'family': 'vitt'}, "unknown backbone family 'vitt'; did you mean 'vit'"),
    ({'mean': None}, 'expected a list of numbers, one a channel, for mean, got None'),
    ({'mean': '12'}, "for mean, got '12'"),
    ({'mean': [0.1, float('nan')]}, 'expected finite numbers for mean'),
    ({'mean': [0.1, 1e60]}, 'expected finite numbers for mean'),
    ({'std': [0.2, 0]}, r'expected positive numbers for std, got \[0.2, 0\]'),
    ({'std': [0.2, True]}, 'expected positive numbers for std'),
    ({'file': 3}, 'expected the name of a file or null for file, got 3'),
    ({'sha256': 'abc'}, "expected 64 hex digits or null for sha256, got 'abc'"),
    ({'sha265': 64 * '0'}, "unknown entry 'sha265'; did you mean 'sha256'"),
    ({'architecture': None}, 'expected an object for architecture, got None'),
  ],
)
def test_entries_that_mean_nothing_are_named_with_the_card(card, change, message):
  card.write_text(json.dumps({**json.loads(card.read_text()), **change}))
  with pytest.raises(ValueError, match=f'{card} is not a checkpoint card: .*{message}'):
    read_card(card)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'widht': 20}, "unknown entry of architecture 'widht'; did you mean 'width'"),
    ({'mean': [0.5, 0.5]}, "unknown entry of architecture 'mean'"),
    ({'width': '20'}, "expected int for width of architecture, got '20'"),
    ({'width': True}, 'expected int for width of architecture, got True'),
    ({'width': 20.0}, 'expected int for width of architecture, got 20.0'),
    ({'mlp_ratio': None}, 'expected float for mlp_ratio of architecture, got None'),
    ({'heads': 0}, 'expected a whole number in 1..2147483647 for heads, got 0'),
    ({'patch': -6}, 'for patch, got -6'),
    ({'depth': 10**9}, 'in 1..1000 for depth'),
    ({'mlp_ratio': float('inf')}, 'mlp_ratio: expected a finite number, got inf'),
    ({'channels': 3}, r'expected 3 values for mean, got \(0.4, 0.5\)'),
  ],
)
def test_architectures_that_cannot_be_are_named_with_the_card(card, change, message):
  content = json.loads(card.read_text())
  content['architecture'] |= change
  card.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f'{card}.*{message}'):
    architecture(card)


def test_a_size_that_a_card_lacks_is_named(card):
  content = json.loads(card.read_text())
  del content['architecture']['patch']
  card.write_text(json.dumps(content))
  with pytest.raises(ValueError, match='architecture has no patch'):
    read_card(card)


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
  chex.assert_trees_all_equal(found.params, decoder_params)
  assert (found.backbone.inputs.shape, found.backbone.inputs.pad) == ((12,), 36)
  assert found.identity['backbone_sha256'] == digest
