"""Which of timm's models are this vision transformer, from the `config.json` beside the weights."""

import json

import pytest

from pecft_jax.backbones import load_timm, save_timm

# As timm writes it, of a tiny model.
TIMM = {
  'architecture': 'vit_tiny_patch16_224', 'num_classes': 0, 'num_features': 20,
  'global_pool': 'token',
  'model_args': {
    'img_size': [24, 24], 'patch_size': 6, 'in_chans': 2, 'embed_dim': 20, 'depth': 3,
    'num_heads': 4, 'mlp_ratio': 3.0, 'num_classes': 0, 'global_pool': 'token',
  },
  'pretrained_cfg': {
    'tag': '', 'custom_load': False, 'input_size': [2, 24, 24], 'fixed_input_size': True,
    'interpolation': 'bicubic', 'crop_pct': 0.9, 'crop_mode': 'center', 'mean': [0.4, 0.5],
    'std': [0.2, 0.3], 'num_classes': 0, 'pool_size': None, 'first_conv': 'patch_embed.proj',
    'classifier': 'head', 'license': 'apache-2.0',
  },
}  # fmt: skip


@pytest.fixture
def loaded(tmp_path, tiny, params):
  """`(change) -> checkpoint` with a configuration beside it, some parts of which are changed."""

  def load(change):
    text = {**TIMM, **change}
    for part in ('model_args', 'pretrained_cfg'):
      if isinstance(change.get(part), dict):
        text[part] = {**TIMM[part], **change[part]}
    (tmp_path / 'config.json').write_text(json.dumps(text))
    return load_timm(tmp_path / 'model.safetensors', tiny)

  save_timm(tmp_path / 'model.safetensors', tiny, params)
  return load


@pytest.mark.parametrize(
  'change',
  [
    {},
    {'architecture': 'vit_base_patch16_224.augreg_in21k'},
    {'model_args': {'img_size': 24, 'drop_rate': 0.1, 'act_layer': 'gelu'}},
    {'pretrained_cfg': {'mean': [0.40001, 0.5], 'hf_hub_id': 'timm/vit'}},
    {'pretrained_cfg': None},
  ],
)
def test_a_model_that_is_this_one_is_read(loaded, change):
  assert loaded(change).params['pos'].shape == (1, 17, 20)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'architecture': 'vit_base_patch16_clip_quickgelu_224'}, "got 'vit_base_patch16_clip_quick"),
    ({'architecture': None}, 'expected an architecture such as vit_base_patch16_224, got None'),
    ({'global_pool': 'avg'}, "global_pool='avg' is not supported, only 'token'"),
    ({'model_args': {'global_pool': 'avg'}}, "global_pool='avg' is not supported"),
    ({'model_args': {'act_layer': 'quick_gelu'}}, "act_layer='quick_gelu' is not supported"),
    ({'model_args': {'norm_layer': 'rmsnorm'}}, "norm_layer='rmsnorm' is not supported"),
    ({'model_args': {'qk_norm': True}}, 'qk_norm=True is not supported, only False'),
    ({'model_args': {'attn_layer': 'diff'}}, 'attn_layer may change what the model computes'),
    ({'model_args': {'num_heads': 5}}, 'says num_heads 5, vit has heads 4'),
    ({'model_args': {'img_size': [24, 30]}}, r'says img_size \[24, 30\], vit has image_size 24'),
    ({'model_args': []}, r'expected an object for model_args, got \[\]'),
    ({'pretrained_cfg': {'mean': [0.5, 0.5]}}, r'says mean \[0.5, 0.5\], vit has \[0.4, 0.5\]'),
    ({'pretrained_cfg': {'std': [0.2]}}, r'says std \[0.2\], vit has \[0.2, 0.3\]'),
    ({'pretrained_cfg': {'std': '0.2'}}, 'says std 0.2, vit has'),
    ({'pretrained_cfg': {'rescale': 0.5}}, 'rescale may change what the model computes'),
    ({'model_type': 'vit'}, 'model_type may change what the model computes'),
  ],
)
def test_a_model_of_another_function_is_refused_by_key(loaded, change, message):
  with pytest.raises(ValueError, match=rf'config\.json.*{message}'):
    loaded(change)


def test_heads_are_those_of_the_architecture_where_they_are_not_given(tmp_path, tiny, params):
  save_timm(tmp_path / 'model.safetensors', tiny, params)
  plain = {'architecture': 'vit_small_patch16_224'}
  (tmp_path / 'config.json').write_text(json.dumps(plain))
  with pytest.raises(ValueError, match='says num_heads 6, vit has heads 4'):
    load_timm(tmp_path / 'model.safetensors', tiny)


def test_the_configuration_of_a_run_is_none_of_a_model(loaded, tmp_path, tiny):
  (tmp_path / 'config.json').write_text('{"identity": {}, "method": {}, "training": {}}')
  assert load_timm(tmp_path / 'model.safetensors', tiny).params.keys() >= {'cls', 'pos'}
