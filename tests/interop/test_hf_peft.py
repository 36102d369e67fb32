import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pecft_jax.backbones import random_weights
from pecft_jax.continual.core import Head
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.peft import (
  adaptformer,
  at_layers,
  bank,
  bitfit,
  chain,
  dora,
  ia3,
  linear_probe,
  lora,
  ssf,
)
from pecft_jax.typing import Adapted

Q = r'attn/q$'


@pytest.fixture(scope='module')
def model():
  return random_weights('vit_glyphs16')


def adapted(model, peft, head=None):
  return Adapted(peft, peft.init(jax.random.key(0), model.backbone.sites, model.params), head)


def save(model, peft, directory, head=None):
  save_hf_peft(directory, model.backbone, adapted(model, peft, head), model.params)
  config = json.loads((directory / 'adapter_config.json').read_text())
  return config, load_file(directory / 'adapter_model.safetensors')


def test_factors_are_transposed_and_q_takes_the_first_third(model, tmp_path):
  peft = at_layers(lora(Q, 3, alpha=6), [2])
  config, tensors = save(model, peft, tmp_path)
  leaf = adapted(model, peft).delta['block_2/attn/q']
  name = 'base_model.model.blocks.2.attn.qkv'
  np.testing.assert_array_equal(tensors[f'{name}.lora_A.weight'], leaf.a.T)
  assert tensors[f'{name}.lora_B.weight'].shape == (3 * 96, 3)
  assert (config['r'], config['lora_alpha']) == (3, 6)
  assert config['target_modules'] == ['blocks.2.attn.qkv']


def test_the_classifier_is_saved_among_the_modules(model, tmp_path):
  head = Head(jnp.arange(96 * 5.0).reshape(96, 5), jnp.arange(5.0))
  config, tensors = save(model, lora(Q), tmp_path, head)
  assert config['modules_to_save'] == ['head']
  np.testing.assert_array_equal(tensors['base_model.model.head.weight'], head.kernel.T)
  back = load_hf_peft(tmp_path, model.backbone)
  np.testing.assert_array_equal(back.head.kernel, head.kernel)
  np.testing.assert_array_equal(back.head.bias, head.bias)


def test_without_a_classifier_none_comes_back(model, tmp_path):
  config, _ = save(model, lora(Q), tmp_path)
  assert config['modules_to_save'] is None
  assert load_hf_peft(tmp_path, model.backbone).head is None


@pytest.mark.parametrize(
  ('peft', 'message'),
  [
    (adaptformer(4), 'expected a delta of lora, rslora, dora or ia3, got BottleneckDelta'),
    (ssf(), 'got SsfDelta'),
    (bitfit(), 'got plain arrays'),
    (linear_probe(), 'names no site'),
    (chain(a=lora(Q), b=ia3()), 'no mixture of .*Ia3Delta.*LoraDelta'),
    (chain(a=dora(Q), b=dora(Q)), 'two DoRAs act on blocks.0.attn.qkv'),
    (bank(lora(Q), 2), r'leading axes \[2, 96, 8\]: of a bank, save one slot'),
    (lora('patch'), "'patch' is no linear layer of timm"),
    (ia3(outputs='fc2', inputs='fc2'), 'not parts or both'),
  ],
)
def test_what_the_format_cannot_say_is_refused(model, tmp_path, peft, message):
  with pytest.raises(ValueError, match=message):
    save(model, peft, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_directory_with_something_in_it_is_refused(model, tmp_path):
  (tmp_path / 'precious').touch()
  with pytest.raises(ValueError, match='is there already'):
    save(model, lora(Q), tmp_path)


@pytest.fixture
def written(model, tmp_path):
  """A directory to spoil, with its configuration."""
  config, _ = save(model, lora(Q), tmp_path)
  return tmp_path, config


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'peft_type': 'LOHA'}, "expected an adapter of type LORA or IA3, got 'LOHA'"),
    ({'r': None}, 'expected a number for r, got None'),
    ({'bias': 'all'}, "bias='all' is not supported, only 'none'"),
    ({'layer_replication': [[0, 2]]}, 'layer_replication'),
    ({'use_dora': True}, 'use_dora is True, but its tensors say otherwise'),
  ],
)
def test_configurations_that_mean_something_else_are_refused(model, written, change, message):
  directory, config = written
  (directory / 'adapter_config.json').write_text(json.dumps({**config, **change}))
  with pytest.raises(ValueError, match=message):
    load_hf_peft(directory, model.backbone)


def test_files_that_are_missing_are_named(model, written):
  directory, _ = written
  (directory / 'adapter_model.safetensors').unlink()
  with pytest.raises(ValueError, match=r'no weights file at .*adapter_model.safetensors'):
    load_hf_peft(directory, model.backbone)
  (directory / 'adapter_config.json').unlink()
  with pytest.raises(ValueError, match=r'adapter_config.json is no configuration'):
    load_hf_peft(directory, model.backbone)


def spoil(directory, change):
  path = str(directory / 'adapter_model.safetensors')
  save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda tensors: {name.replace('blocks.0', 'blocks.9'): t for name, t in tensors.items()},
      r"adapts \['blocks.9.attn.qkv'\], which .* has not",
    ),
    (
      lambda tensors: {n: t for n, t in tensors.items() if 'blocks.0.attn.qkv.lora_B' not in n},
      r'blocks.0.attn.qkv has no lora_B.weight',
    ),
    (
      lambda tensors: {n: t[:, :90] if 'lora_A' in n else t for n, t in tensors.items()},
      r'block_0/attn/k/a has shape \[90, 8\], .* expects \[96, 8\], whatever the rank',
    ),
    (lambda tensors: {**tensors, 'x': np.zeros(3)}, 'x is no tensor of a LoRA'),
  ],
)
def test_tensors_that_do_not_fit_are_named(model, written, change, message):
  directory, _ = written
  spoil(directory, change)
  with pytest.raises(ValueError, match=message):
    load_hf_peft(directory, model.backbone)
