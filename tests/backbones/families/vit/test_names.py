import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pecft_jax.backbones import load_timm, save_timm, vit


@pytest.fixture
def file(tmp_path, tiny, params):
  head = {'kernel': np.ones((20, 7), np.float32), 'bias': np.zeros(7, np.float32)}
  save_timm(tmp_path / 'model.safetensors', tiny, params, head)
  return tmp_path / 'model.safetensors'


def test_names_and_shapes_on_disk_are_timms(file):
  tensors = load_file(file)
  assert tensors['patch_embed.proj.weight'].shape == (20, 2, 6, 6)
  assert tensors['blocks.2.attn.qkv.weight'].shape == (60, 20)
  assert tensors['blocks.0.mlp.fc1.weight'].shape == (60, 20)
  assert {'cls_token', 'pos_embed', 'norm.weight', 'blocks.1.norm2.bias', 'head.weight'} <= set(
    tensors
  )


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('fused', [False, True])
def test_every_layout_reads_the_same_file_and_writes_it_again(
  file, tmp_path, sizes, tiny, params, images, scan, fused
):
  model = vit(**sizes, scan=scan, fused=fused)
  checkpoint = load_timm(file, model)
  want = tiny.apply(params, images).pooled
  np.testing.assert_allclose(model.apply(checkpoint.params, images).pooled, want, atol=2e-6)
  digest = save_timm(tmp_path / 'again.safetensors', model, checkpoint.params, checkpoint.head)
  assert digest == checkpoint.sha256


def test_the_head_comes_apart_from_the_backbone(file, tiny):
  checkpoint = load_timm(file, tiny)
  assert 'head' not in checkpoint.params
  assert checkpoint.head['kernel'].shape == (20, 7)


def test_a_truncated_file_is_refused(file, tiny):
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(ValueError, match='not a readable safetensors file'):
    load_timm(file, tiny)


def test_a_missing_file_is_refused(tmp_path, tiny):
  with pytest.raises(ValueError, match='no weights file at'):
    load_timm(tmp_path / 'nothing', tiny)


@pytest.mark.parametrize('old', [False, True])
def test_a_file_of_torch_says_how_it_is_converted_and_that_works(file, tiny, old):
  torch = pytest.importorskip('torch')
  path = file.with_name('a model.pth')
  tensors = {name: torch.from_numpy(array) for name, array in load_file(file).items()}
  torch.save(tensors, path, _use_new_zipfile_serialization=not old)
  with pytest.raises(ValueError, match=r'a model.pth is a file of torch.save') as caught:
    load_timm(path, tiny)
  code = re.search(r'import torch.*\.safetensors\'\)', str(caught.value))[0]
  exec(code, {})
  assert load_timm(path.with_suffix('.safetensors'), tiny).head['kernel'].shape == (20, 7)


def test_another_architecture_is_refused_by_name(file, sizes):
  with pytest.raises(ValueError, match=r"missing \['blocks.3"):
    load_timm(file, vit(**{**sizes, 'depth': 4}))
  with pytest.raises(ValueError, match=r"not expected \['blocks.2"):
    load_timm(file, vit(**{**sizes, 'depth': 2}))
  with pytest.raises(ValueError, match=r'shape .* for pos'):
    load_timm(file, vit(**{**sizes, 'image_size': 30}))


@pytest.mark.parametrize('dtype', [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(file, tiny, dtype):
  stored = {k: v.astype(dtype) for k, v in load_file(file).items()}
  save_file(stored, file)
  checkpoint = load_timm(file, tiny)
  assert {leaf.dtype for leaf in jax.tree.leaves(checkpoint[:2])} == {jnp.dtype(jnp.float32)}
  expected = stored['blocks.1.mlp.fc1.weight'].astype(np.float32).T
  np.testing.assert_array_equal(checkpoint.params['block_1']['mlp']['fc1']['kernel'], expected)


@pytest.mark.parametrize('dtype', [np.float64, np.int8])
def test_another_dtype_is_refused(file, tiny, dtype):
  save_file({k: v.astype(dtype) for k, v in load_file(file).items()}, file)
  with pytest.raises(ValueError, match=r'has dtype (float64|int8), expected float32 or bfloat16'):
    load_timm(file, tiny)


def test_loading_gives_device_arrays(file, tiny):
  params = load_timm(file, tiny).params
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'head.bias': None}, r"has \['head.weight'\] of the head, missing \['head.bias'\]"),
    ({'head.bias': np.zeros(6, np.float32)}, r'head.bias has shape \[6\], expected \[classes\]'),
    ({'head.weight': np.ones((7, 20), np.int32)}, 'head.weight has dtype int32'),
    ({'head.bias': np.full(7, np.nan, np.float32)}, 'head.bias is not finite'),
    ({'norm.weight': np.full(20, np.inf, np.float32)}, 'norm.weight is not finite'),
  ],
)
def test_parts_that_do_not_fit_are_named(file, tiny, change, message):
  tensors = {**load_file(file), **change}
  save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
  with pytest.raises(ValueError, match=message):
    load_timm(file, tiny)
