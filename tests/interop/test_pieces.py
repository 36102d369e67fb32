import jax
import pytest

from pecft_jax.backbones import random_weights
from pecft_jax.interop.pieces import pieces_of
from pecft_jax.interop.types.ia3 import of_inputs
from pecft_jax.interop.types.lora import scale_in
from pecft_jax.peft import (
  DoraDelta,
  Ia3Delta,
  LoraDelta,
  PissaDelta,
  at_layers,
  chain,
  dora,
  ia3,
  linear_probe,
  lora,
  pissa,
  rslora,
)

KINDS = {LoraDelta: ('lora',), DoraDelta: ('dora',), PissaDelta: ('pissa',), Ia3Delta: ('ia3',)}


@pytest.fixture(scope='module')
def model():
  return random_weights('vit_glyphs16')


def pieces(model, peft):
  delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  return pieces_of(peft, delta, KINDS), delta


@pytest.mark.parametrize(
  ('peft', 'scale'),
  [
    (lora(rank=4), 2.0),
    (lora(rank=5, alpha=1.3), 1.3 / 5),
    (rslora(rank=9, alpha=6.0), 2.0),
    (dora(rank=3, alpha=7e4), 7e4 / 3),
    (dora(rank=3, alpha=1e-3), 1e-3 / 3),
    (pissa(rank=3, alpha=7.0), 7 / 3),
  ],
)
def test_the_scale_of_a_transform_is_found(model, peft, scale):
  found, delta = pieces(model, at_layers(peft, [1, 4]))
  assert [piece.path for piece in found] == list(delta)
  for piece in found:
    assert piece.leaf is delta[piece.path]
    assert scale_in(piece) == pytest.approx(scale, rel=1e-6)


def test_parts_of_nested_chains_have_scales_and_options_of_their_own(model):
  inner = chain(a=lora('attn/q$', 2, alpha=3.0), nothing=linear_probe())
  found, _ = pieces(model, chain(inner=inner, b=at_layers(lora('fc1', 4, alpha=1.0), [5])))
  ranks = {piece.path: piece.option('rank') for piece in found}
  scales = {piece.path: scale_in(piece) for piece in found}
  assert scales.pop('block_5/mlp/fc1') == pytest.approx(0.25)
  assert ranks.pop('block_5/mlp/fc1') == 4
  assert len(scales) == 6
  assert all(scale == pytest.approx(1.5) for scale in scales.values())
  assert set(ranks.values()) == {2}


def test_a_transform_of_ones_own_has_no_options(model):
  peft = lora()._replace(settings=None)
  with pytest.raises(ValueError, match='the transform does not tell its rank'):
    pieces(model, peft)[0][0].option('rank')


def test_factors_of_inputs_are_told_from_those_of_outputs(model):
  found, _ = pieces(model, ia3(outputs='attn/v$', inputs='fc2'))
  assert {piece.path.rpartition('/')[2]: of_inputs(piece) for piece in found} == {
    'v': False,
    'fc2': True,
  }
