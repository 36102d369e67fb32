"""What users get wrong with adapters has an error that names it, and says what is expected."""

import json

import jax
import jax.numpy as jnp
import pytest

from pecft_jax import peft
from pecft_jax.backbones import quantised, vit
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.check import check_saved
from pecft_jax.quantised import dequantised
from pecft_jax.typing import Adapted, Pretrained

BACKBONE = vit(
  image_size=4, channels=1, patch=2, width=16, depth=2, heads=2, mean=(0.5,), std=(0.5,)
)
PARAMS = BACKBONE.init(jax.random.key(0))
MODEL = Pretrained(BACKBONE, PARAMS)
TRANSFORM = peft.lora('attn/q$', rank=2)


def delta_of(transform, params=PARAMS):
  return transform.init(jax.random.key(1), BACKBONE.sites, params)


@pytest.mark.parametrize(
  'transform',
  [
    peft.lora('attn/q$', 17), peft.rslora('attn/q$', 17), peft.dora('attn/q$', 17),
    peft.lora_fa('attn/q$', 17), peft.adalora('attn/q$', 17, 8),
    peft.loha('attn/q$', 17), peft.hira('attn/q$', 17), peft.pissa('attn/q$', 17),
    peft.delora('attn/q$', 17), peft.miss('attn/q$', 17), peft.lora_xs('attn/q$', 17),
  ],
)  # fmt: skip
def test_a_rank_above_the_size_of_a_layer_names_the_layer_and_its_size(transform):
  with pytest.raises(ValueError, match=r'block_0/attn/q: rank 17 is above .* 16'):
    delta_of(transform)


def test_a_rank_between_the_sides_of_a_layer_is_for_patterns_of_several_layers():
  assert delta_of(peft.lora('attn/q$|mlp/fc1', 16))['block_0/mlp/fc1'].a.shape == (16, 16)


def test_a_target_that_is_nowhere_lists_the_sites():
  with pytest.raises(ValueError, match=r"matches 'query'; sites: .*block_0/attn/q"):
    delta_of(peft.lora('query'))


@pytest.fixture
def written(tmp_path):
  save_hf_peft(tmp_path / 'a', BACKBONE, Adapted(TRANSFORM, delta_of(TRANSFORM), None), PARAMS)
  return tmp_path / 'a'


def test_an_adapter_of_another_base_is_refused(written):
  other = BACKBONE.init(jax.random.key(2))
  with pytest.raises(ValueError, match=r'it is for vit with sha256 .*any_base=True'):
    load_hf_peft(written, BACKBONE, params=other)
  wide = vit(image_size=4, channels=1, patch=2, width=24, depth=2, heads=2, mean=(0.5,), std=(0.5,))
  with pytest.raises(ValueError, match=r'block_0/attn/./a has shape \[16, 2\], .* \[24, 2\]'):
    load_hf_peft(written, wide)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (lambda whole: whole[:-9], r'is not a readable safetensors file \(truncated\?\)'),
    (lambda whole: whole[:4], 'is not a readable safetensors file'),
    (lambda whole: b'PK\x03\x04' + whole, 'is a file of torch.save, which is not read'),
    (lambda whole: b'', 'is not a readable safetensors file'),
  ],
  ids=['truncated', 'its header', 'of pickle', 'empty'],
)
def test_tensors_that_are_truncated_or_of_another_format_name_the_file(content, message, written):
  file = written / 'adapter_model.safetensors'
  file.write_bytes(content(file.read_bytes()))
  with pytest.raises(ValueError, match=rf'adapter_model.safetensors {message}'):
    load_hf_peft(written, BACKBONE)


@pytest.mark.parametrize('content', ['', '{"r": 4', '[]', 'r: 4'])
def test_a_configuration_that_is_none_names_the_file(content, written):
  (written / 'adapter_config.json').write_text(content)
  with pytest.raises(ValueError, match=r'adapter_config\.json.* is not the configuration'):
    load_hf_peft(written, BACKBONE)


def test_an_adapter_of_a_later_version_names_what_is_new(written):
  file = written / 'adapter_config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), 'use_new': True}))
  with pytest.raises(ValueError, match='use_new may change what the adapter computes'):
    load_hf_peft(written, BACKBONE)


@pytest.mark.parametrize('form', ['int8', 'nf4'])
def test_quantised_weights_are_merged_into_at_a_dtype_that_is_chosen(form, tmp_path):
  small = quantised(MODEL, form).params
  delta = delta_of(TRANSFORM, small)
  for merge in (TRANSFORM.merge, lambda *args: peft.merged(TRANSFORM, *args)):
    with pytest.raises(ValueError, match=r'quantised, .*dequantised\(params, dtype\), with the'):
      merge(delta, small)
  wide = TRANSFORM.merge(delta, dequantised(small, jnp.bfloat16))
  assert wide['block_0']['mlp']['fc1']['kernel'].dtype == jnp.bfloat16
  # What was trained beside them is exported, and compared, as it is.
  found = Adapted(TRANSFORM, delta, None)
  save_hf_peft(tmp_path / 'a', BACKBONE, found, small)
  check_saved(tmp_path / 'a', BACKBONE, found, small)
