import jax
import pytest

from pecft_jax.backbones import random_weights
from pecft_jax.interop.pieces import pieces_of
from pecft_jax.peft import at_layers, chain, dora, ia3, linear_probe, lora, rslora


@pytest.fixture(scope='module')
def model():
  return random_weights('vit_glyphs16')


def pieces(model, peft):
  delta = peft.init(jax.random.key(0), model.backbone.sites, model.params)
  return pieces_of(peft, delta), delta


@pytest.mark.parametrize(
  ('peft', 'scale'),
  [
    (lora(rank=4), 2.0),
    (lora(rank=5, alpha=1.3), 1.3 / 5),
    (rslora(rank=9, alpha=6.0), 2.0),
    (dora(rank=3, alpha=7e4), 7e4 / 3),
    (dora(rank=3, alpha=1e-3), 1e-3 / 3),
  ],
)
def test_the_scale_of_a_transform_is_found(model, peft, scale):
  found, delta = pieces(model, at_layers(peft, [1, 4]))
  assert [piece.path for piece in found] == list(delta)
  for piece in found:
    assert piece.leaf is delta[piece.path]
    assert piece.scale == pytest.approx(scale, rel=1e-6)
    assert not piece.inputs


def test_parts_of_nested_chains_have_scales_of_their_own(model):
  inner = chain(a=lora('attn/q$', 2, alpha=3.0), nothing=linear_probe())
  found, _ = pieces(model, chain(inner=inner, b=at_layers(lora('fc1', 4, alpha=1.0), [5])))
  scales = {piece.path: piece.scale for piece in found}
  assert scales.pop('block_5/mlp/fc1') == pytest.approx(0.25)
  assert len(scales) == 6
  assert all(scale == pytest.approx(1.5) for scale in scales.values())


def test_factors_of_inputs_are_told_from_those_of_outputs(model):
  found, _ = pieces(model, ia3(outputs='attn/v$', inputs='fc2'))
  assert {piece.path.rpartition('/')[2]: piece.inputs for piece in found} == {
    'v': False,
    'fc2': True,
  }
