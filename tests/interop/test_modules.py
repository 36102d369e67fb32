import pytest

from pecft_jax.backbones import architecture
from pecft_jax.interop import LLAMA, TIMM_VIT, Module, naming_of


@pytest.mark.parametrize(
  ('path', 'module'),
  [
    ('block_3/attn/q', Module('blocks.3.attn.qkv', 0)),
    ('block_3/attn/v', Module('blocks.3.attn.qkv', 2)),
    ('block_11/attn/out', Module('blocks.11.attn.proj', None)),
    ('block_0/mlp/fc2', Module('blocks.0.mlp.fc2', None)),
    ('patch', Module('patch_embed.proj', None)),
  ],
)
def test_timm(path, module):
  assert TIMM_VIT.of(path) == module


@pytest.mark.parametrize(
  ('path', 'module'),
  [
    ('block_3/attn/q', Module('model.layers.3.self_attn.q_proj', None)),
    ('block_0/attn/out', Module('model.layers.0.self_attn.o_proj', None)),
    ('block_10/mlp/gate', Module('model.layers.10.mlp.gate_proj', None)),
  ],
)
def test_llama(path, module):
  assert LLAMA.of(path) == module


def test_images_are_for_vits_and_token_ids_for_llamas():
  assert naming_of(architecture('vit_base_patch16_224')) is TIMM_VIT
  assert naming_of(architecture('llama_3.2_1b', length=8)) is LLAMA
