import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pecft_jax.backbones import random_weights
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.interop.hf_peft_save import PREFIX
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
from pecft_jax.typing import Adapted, LinearHead

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
  head = LinearHead(jnp.arange(96 * 5.0).reshape(96, 5), jnp.arange(5.0))
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
    (adaptformer(4), 'expected a delta of .*lora, rslora, dora, .*got BottleneckDelta'),
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
    ({'peft_type': 'BONE'}, "expected an adapter of type .*LORA.*, got 'BONE'"),
    ({'peft_type': ['LORA']}, r"expected an adapter of type .*, got \['LORA'\]"),
    ({'r': None}, 'expected a whole number of at least 1 for r, got None'),
    ({'r': True}, 'for r, got True'),
    ({'r': 8.0}, 'for r, got 8.0'),
    ({'r': 4}, 'blocks.0.attn.qkv have rank 8, its configuration says 4'),
    ({'rank_pattern': {'qkv': 4}}, 'have rank 8, its configuration says 4'),
    ({'rank_pattern': {'qkv': '16'}}, r"for rank_pattern\['qkv'\], got '16'"),
    ({'rank_pattern': [4]}, r'expected an object for rank_pattern, got \[4\]'),
    ({'rank_pattern': []}, r'expected an object for rank_pattern, got \[\]'),
    ({'lora_alpha': float('nan')}, 'expected a finite number for lora_alpha, got nan'),
    ({'lora_alpha': float('inf')}, 'expected a finite number for lora_alpha, got inf'),
    ({'lora_alpha': 1e300}, 'expected a finite number for lora_alpha, got 1e'),
    ({'alpha_pattern': {'qkv': 1, 'attn.qkv': 7}}, r'different values for blocks.0.attn.qkv'),
    ({'alpha_pattern': {'(a+)+b': 1}}, r"alpha_pattern '\(a\+\)\+b': expected names of layers"),
    ({'alpha_pattern': {'.*.*.*x': 1}}, 'at most 2 single characters that repeat'),
    ({'alpha_pattern': {'(qkv': 1}}, r"alpha_pattern '\(qkv' is no regular expression"),
    ({'lora_dropout': 2}, r'expected a number in \[0, 1\) for lora_dropout, got 2'),
    ({'use_rslora': 'no'}, "expected true or false for use_rslora, got 'no'"),
    ({'bias': 'all'}, "bias='all' is not supported, only 'none'"),
    ({'layer_replication': [[0, 2]]}, 'layer_replication'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights='pissa' is not supported"),
    ({'init_lora_weights': 'pissa_niter_4'}, "init_lora_weights='pissa_niter_4'"),
    ({'init_lora_weights': 'olora'}, "init_lora_weights='olora'"),
    ({'init_lora_weights': 'corda', 'corda_config': {}}, 'init_lora_weights='),
    ({'init_lora_weights': 1}, 'init_lora_weights=1 is not supported'),
    ({'kasa_config': {'beta': 1}}, 'kasa_config='),
    ({'a_new_option': True}, 'a_new_option may change what the adapter computes'),
    ({'use_dora': True}, r'qkv: expected .*lora_magnitude_vector \(use_dora=True\), got lora_A'),
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
  with pytest.raises(
    ValueError,
    match=r'adapter_config.json is not .*: there is no such file',
  ):
    load_hf_peft(directory, model.backbone)


def spoil(directory, change):
  path = str(directory / 'adapter_model.safetensors')
  save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda tensors: {name.replace('blocks.0', 'blocks.9'): t for name, t in tensors.items()},
      r"adapts \['blocks.9.attn.qkv'\], but .* has no such layers",
    ),
    (
      lambda tensors: {n: t for n, t in tensors.items() if 'blocks.0.attn.qkv.lora_B' not in n},
      r'blocks.0.attn.qkv: expected lora_A.weight and lora_B.weight \(LORA\), got lora_A.weight',
    ),
    (
      lambda tensors: {n: t[:, :90] if 'lora_A' in n else t for n, t in tensors.items()},
      r'block_0/attn/k/a has shape \[90, 8\], .* expects \[96, 8\], whatever the rank',
    ),
    (lambda tensors: {**tensors, 'x': np.zeros(3)}, 'x is no tensor of an adapter of type LORA'),
    (lambda tensors: {n.removeprefix(PREFIX): t for n, t in tensors.items()}, 'is no tensor of a'),
    (
      lambda tensors: {n: t[:-1] if 'lora_B' in n else t for n, t in tensors.items()},
      'blocks.0.attn.qkv has 287 outputs: expected as many for each of q, k and v',
    ),
    (
      lambda tensors: {n: t[:-3] if 'lora_B' in n else t for n, t in tensors.items()},
      r'/b has shape \[\d+, 95\]',
    ),
    (
      lambda tensors: {n: t[:, 1:] if 'lora_B' in n else t for n, t in tensors.items()},
      r'qkv: expected lora_A \[r, in\] and lora_B \[out, r\], got \(8, 96\) and \(288, 7\)',
    ),
    (
      lambda tensors: {
        n: np.where(np.arange(96) == 5, np.nan, t) if '0.attn.qkv.lora_A' in n else t
        for n, t in tensors.items()
      },
      r'blocks.0.attn.qkv.lora_A.weight is not finite: nan at \[0, 5\]',
    ),
    (
      lambda tensors: {n: (100 * t).astype(np.int32) for n, t in tensors.items()},
      'has dtype int32, expected floating-point numbers',
    ),
    (
      lambda tensors: {**tensors, f'{PREFIX}blocks.0.attn.qkv.bias': np.ones(288, np.float32)},
      r'qkv: expected lora_A.weight and lora_B.weight \(LORA\), got bias and lora_A',
    ),
    (
      lambda tensors: {**tensors, f'{PREFIX}blocks.0.norm1.weight': np.ones(96, np.float32)},
      r"adapts \['blocks.0.norm1'\]",
    ),
    (
      lambda tensors: {**tensors, f'{PREFIX}head.weight': np.ones((5, 95), np.float32)},
      r'head.weight: expected shape \[classes, 96\], got \(5, 95\)',
    ),
    (
      lambda tensors: {
        **tensors,
        f'{PREFIX}head.weight': np.ones((5, 96), np.float32),
        f'{PREFIX}head.bias': np.ones(4, np.float32),
      },
      r'head: expected a vector of 5, got shape \(4,\)',
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(model, written, change, message):
  directory, _ = written
  spoil(directory, change)
  with pytest.raises(ValueError, match=message):
    load_hf_peft(directory, model.backbone)


def loaded(model, directory, x):
  found = load_hf_peft(directory, model.backbone)
  return model.backbone.apply(model.params, x, found.delta, peft=found.peft).pooled


@pytest.mark.parametrize(
  'change',
  [
    {'init_lora_weights': 'gaussian'},
    {'init_lora_weights': False, 'peft_version': '0.21.2', 'runtime_config': {'x': 1}},
    {'rank_pattern': {'qkv': 16}, 'r': 3, 'lora_alpha': 6, 'alpha_pattern': {'qkv': 32}},
    {'alpha_pattern': {r'^blocks\.\d+\.attn\.(qkv|proj)': 32, 'qkv': 32}, 'lora_alpha': 1},
    {'alpha_pattern': {'kv': 1, '^attn.qkv': 2, 'ttn.qkv': 3}},
    {'target_modules': '(a+)+$', 'exclude_modules': None},
  ],
)
def test_settings_that_mean_the_same_give_the_same(model, tmp_path, change):
  delta = jax.tree.map(lambda a: a + 0.1, adapted(model, lora(Q, 16)).delta)
  save_hf_peft(tmp_path, model.backbone, Adapted(lora(Q, 16), delta, None), model.params)
  x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1))
  expected = loaded(model, tmp_path, x)
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  np.testing.assert_allclose(loaded(model, tmp_path, x), expected, atol=1e-6)


@pytest.mark.parametrize('alpha', [0, -32])
def test_an_alpha_that_is_not_positive_keeps_its_meaning(model, tmp_path, alpha):
  """Negative ones take something away that was learnt (arXiv:2212.04089)."""
  delta = jax.tree.map(lambda a: a + 0.1, adapted(model, lora(Q, 16)).delta)
  save_hf_peft(tmp_path, model.backbone, Adapted(lora(Q, 16), delta, None), model.params)
  path = tmp_path / 'adapter_config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, 'lora_alpha': alpha}))
  factor = alpha / config['lora_alpha']
  other = {name: leaf._replace(b=factor * leaf.b) for name, leaf in delta.items()}
  x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1))
  expected = model.backbone.apply(model.params, x, other, peft=lora(Q, 16)).pooled
  np.testing.assert_allclose(loaded(model, tmp_path, x), expected, atol=1e-6)


def test_the_inputs_of_ia3_are_those_that_the_configuration_names(model, tmp_path):
  config, _ = save(model, ia3(), tmp_path)
  path = tmp_path / 'adapter_config.json'
  path.write_text(json.dumps({**config, 'feedforward_modules': ['qkv']}))
  with pytest.raises(ValueError, match=r'feedforward_modules is \[.qkv.\], but ia3_l has shape'):
    load_hf_peft(tmp_path, model.backbone)


def test_an_entry_that_comes_twice_is_refused(model, written):
  directory, _ = written
  path = directory / 'adapter_config.json'
  path.write_text(path.read_text().replace('"r": 8', '"r": 8,\n"r": 4'))
  with pytest.raises(ValueError, match=r"\['r'\] come twice"):
    load_hf_peft(directory, model.backbone)
