"""Damaged and misspelt inputs of every format: the right result, or an error that names the file.

`--fuzz N` tries N inputs of each kind, others each time; by default some dozens, always the same.
"""

import io
import json
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import fuzzed, in_time
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import silent, tiny_backbone, tiny_experiment, tiny_frozen

from pecft_jax import data
from pecft_jax.backbones import (
  architecture,
  decoder,
  load_llama,
  load_timm,
  pretrained,
  read_llama_config,
  save_llama,
  save_timm,
  vit,
)
from pecft_jax.data.table_files import read_table
from pecft_jax.interop import load_hf_peft, save_hf_peft
from pecft_jax.peft import lora
from pecft_jax.peft.scaling.ia3 import scaled_outputs
from pecft_jax.report import comparison_markdown, read_run, write_page
from pecft_jax.train import run
from pecft_jax.typing import Adapted, LinearHead
from pecft_jax.workdir.inspection import inspect_run

VIT = vit(name='tiny', image_size=4, channels=1, patch=2, width=8, depth=1, heads=2, mean=(0.5,),
          std=(0.5,))  # fmt: skip
DECODER = decoder(vocabulary=11, width=8, depth=1, heads=2, kv_heads=1, hidden=8, length=6)


REFUSED = object()


def outcome(call, *names):
  """What a call gives, or REFUSED; an error must be a ValueError that has all of the names."""
  try:
    with in_time():
      return call()
  except ValueError as error:
    assert type(error) is ValueError, repr(error)
    for name in names:
      assert str(name) in str(error), f'{name} is not named: {error}'
    return REFUSED


# Values of any type, and numbers that are easily taken for others.
SCALARS = st.one_of(
  st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 8, 0.5, 1.0, -0.0, 1e300, 1e-300, 2**31, 10**30]
  ),
  st.sampled_from(
    [float('nan'), float('inf'), -float('inf'), '', '0', 'nan', 'true', '8', '.*', '(']
  ),
  st.integers(-20, 400),
  st.floats(),
  st.text(max_size=6),
)
NAMED = st.text(max_size=4)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMED, inner, max_size=3),
  max_leaves=5,
)


def _places(value, path=()):
  """Paths of all entries of objects and lists."""
  children = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, list)
    else ()
  )
  for key, each in children:
    yield (*path, key)
    yield from _places(each, (*path, key))


@st.composite
def changed(draw, value):
  """A JSON value with one or two entries that are others, missing, or under another name."""
  value = json.loads(json.dumps(value))
  for _ in range(draw(st.integers(1, 2))):
    places = list(_places(value))
    if not places:
      break
    *path, key = draw(st.sampled_from(places))
    at = value
    for each in path:
      at = at[each]
    match draw(st.sampled_from(['other', 'other', 'absent', 'renamed'])):
      case 'other':
        at[key] = draw(VALUES)
      case 'absent':
        del at[key]
      case 'renamed' if isinstance(at, dict):
        at[f'{key}{draw(st.sampled_from(["_", "s", " "]))}'] = at.pop(key)
  return value


@st.composite
def damaged(draw, raw):
  """Bytes with some of them flipped, cut off, doubled or put in."""
  data = bytearray(raw)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, max(0, len(data) - 1)))
    match draw(st.sampled_from(['flip', 'flip', 'cut', 'put', 'double'])):
      case 'flip' if data:
        data[at] ^= draw(st.integers(1, 255))
      case 'cut':
        del data[at:]
      case 'put':
        data[at:at] = draw(st.binary(min_size=1, max_size=4))
      case 'double':
        data[at:at] = data[at : at + draw(st.integers(1, 64))]
  return bytes(data)


@st.composite
def json_file(draw, value):
  """The bytes of a JSON file: of changed values mostly, or damaged ones."""
  if draw(st.integers(0, 3)):
    return json.dumps(draw(changed(value))).encode()
  return draw(damaged(json.dumps(value, indent=1).encode()))


def parsed(raw):
  """The object in a JSON file that was accepted, by the standard library."""
  return json.loads(raw.decode())


# --- weights


def _init(model):
  return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """Bytes of the files of a ViT and of a decoder."""
  at = tmp_path_factory.mktemp('weights')
  head = {'kernel': np.ones((8, 3), np.float32), 'bias': np.ones(3, np.float32)}
  save_timm(at / 'vit', VIT, _init(VIT), head)
  save_llama(at / 'decoder', DECODER, _init(DECODER), {'kernel': np.ones((8, 11), np.float32)})
  return {name: (at / name).read_bytes() for name in ('vit', 'decoder')}


def own_tensors(raw):
  """A safetensors file by its format: an 8-byte length, a JSON header, the numbers."""
  end = 8 + int.from_bytes(raw[:8], 'little')
  header = json.loads(raw[8:end])
  header.pop('__metadata__', None)
  types = {'F32': np.float32, 'F16': np.float16, 'BF16': jnp.bfloat16}
  return {
    name: np.frombuffer(raw[end + e['data_offsets'][0] : end + e['data_offsets'][1]],
                        types[e['dtype']]).reshape(e['shape'])
    for name, e in header.items()
  }  # fmt: skip


@st.composite
def tensors_file(draw, raw):
  """A safetensors file with a changed header, changed numbers, or damage anywhere."""
  end = 8 + int.from_bytes(raw[:8], 'little')
  kind = draw(st.integers(0, 2))
  if kind == 0:
    return draw(damaged(raw))
  if kind == 1:
    header = json.dumps(draw(changed(json.loads(raw[8:end])))).encode()
    return len(header).to_bytes(8, 'little') + header + raw[end:]
  numbers = np.frombuffer(raw[end:], np.float32).copy()
  numbers[draw(st.integers(0, len(numbers) - 1))] = draw(st.floats(width=32))
  return raw[:end] + numbers.tobytes()


@fuzzed(80)
@given(draws=st.data())
def test_weights(draws, weights, tmp_path):
  kind = draws.draw(st.sampled_from(['vit', 'decoder']))
  path = tmp_path / 'model.safetensors'
  raw = draws.draw(tensors_file(weights[kind]))
  path.write_bytes(raw)
  load, model = {'vit': (load_timm, VIT), 'decoder': (load_llama, DECODER)}[kind]
  found = outcome(lambda: load(path, model), path)
  if found is REFUSED:
    return
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found.params, found.head)))
  theirs = own_tensors(raw)
  name = 'blocks.0.mlp.fc1.weight' if kind == 'vit' else 'model.layers.0.mlp.up_proj.weight'
  at = found.params['block_0']['mlp']['fc1' if kind == 'vit' else 'up']
  np.testing.assert_array_equal(at['kernel'], theirs[name].T)
  head = 'head.weight' if kind == 'vit' else 'lm_head.weight'
  if head in theirs or found.head is not None:
    np.testing.assert_array_equal(found.head['kernel'], theirs[head].T)


CARD = {
  'name': 'mine', 'summary': 'A small ViT.', 'family': 'vit', 'mean': [0.5], 'std': [0.25],
  'architecture': {'image_size': 4, 'channels': 1, 'patch': 2, 'width': 8, 'depth': 1, 'heads': 2,
                   'mlp_ratio': 4.0},
  'file': None, 'sha256': None, 'about': {'of': 'nothing'},
}  # fmt: skip


@fuzzed(80)
@given(raw=json_file(CARD))
def test_cards(tmp_path, raw):
  path = tmp_path / 'card.json'
  path.write_bytes(raw)
  found = outcome(lambda: architecture(path), path)
  if found is REFUSED:
    return
  card = parsed(raw)
  sizes = card['architecture']
  assert found.name == card['name']
  assert found.settings['heads'] == sizes['heads']
  assert (found.width, found.depth) == (sizes['width'], sizes['depth'])
  if card['family'] == 'vit':
    assert (list(found.inputs.mean), list(found.inputs.std)) == (card['mean'], card['std'])
    assert found.inputs.shape == (sizes['image_size'],) * 2 + (sizes.get('channels', 3),)
    assert found.settings['mlp_ratio'] == sizes.get('mlp_ratio', 4.0)


@fuzzed(10)
@given(draws=st.data())
def test_weights_of_a_card(draws, weights, tmp_path):
  (tmp_path / 'w').write_bytes(weights['vit'])
  (tmp_path / 'card.json').write_text(json.dumps({**CARD, 'file': 'w'}))
  digest = load_timm(tmp_path / 'w', VIT).sha256
  (tmp_path / 'card.json').write_text(json.dumps({**CARD, 'file': 'w', 'sha256': digest}))
  raw = draws.draw(damaged(weights['vit']))
  (tmp_path / 'w').write_bytes(raw)
  found = outcome(lambda: pretrained(tmp_path / 'card.json'), tmp_path / 'w')
  assert (found is REFUSED) == (raw != weights['vit'])


MODEL = {
  'architectures': ['LlamaForCausalLM'], 'attention_bias': False, 'hidden_act': 'silu',
  'hidden_size': 8, 'intermediate_size': 8, 'max_position_embeddings': 6, 'mlp_bias': False,
  'model_type': 'llama', 'num_attention_heads': 2, 'num_hidden_layers': 1, 'head_dim': 4,
  'num_key_value_heads': 1, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'rope_scaling': {
    'factor': 2.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
    'original_max_position_embeddings': 3, 'rope_type': 'llama3',
  },
  'sliding_window': None, 'tie_word_embeddings': False, 'vocab_size': 11, 'torch_dtype': 'float32',
}  # fmt: skip
WITHOUT_EFFECT = {'torch_dtype'}


@fuzzed(80)
@given(raw=json_file(MODEL))
def test_configurations_of_models(tmp_path, raw):
  path = tmp_path / 'config.json'
  path.write_bytes(raw)
  found = outcome(lambda: read_llama_config(path), path)
  if found is REFUSED:
    return
  said = parsed(raw)
  assert found['width'] == said['hidden_size'] and found['depth'] == said['num_hidden_layers']
  assert found['eps'] == said['rms_norm_eps'] and found['vocabulary'] == said['vocab_size']
  assert found['rope_factor'] == (said.get('rope_scaling') or {}).get('factor', 1.0)
  for key in ('attention_bias', 'mlp_bias', 'hidden_act', 'architectures', 'model_type'):
    assert said.get(key) in (MODEL[key], None, [], 'swish', ['LlamaModel']) or key == 'model_type'


# --- adapters


@pytest.fixture(scope='module')
def adapters(tmp_path_factory):
  """An adapter of LoRA and one of (IA)^3 with its files."""
  at, params = tmp_path_factory.mktemp('adapters'), tiny_frozen()
  head = LinearHead(jnp.ones((8, 2)), jnp.zeros(2))
  for name, peft in (('lora', lora('attn/q$', 2, alpha=4)), ('ia3', scaled_outputs('attn/q$'))):
    delta = peft.init(jax.random.key(0), tiny_backbone().sites, params)
    delta = jax.tree.map(lambda leaf: leaf + 0.5, delta)
    save_hf_peft(at / name, tiny_backbone(), Adapted(peft, delta, head), params)
  return at


@fuzzed(80)
@given(draws=st.data())
def test_adapters(draws, adapters, tmp_path):
  kind = draws.draw(st.sampled_from(['lora', 'ia3']))
  at = tmp_path / 'adapter'
  shutil.copytree(adapters / kind, at, dirs_exist_ok=True)
  file = draws.draw(
    st.sampled_from(['adapter_config.json', 'adapter_model.safetensors', 'pecft.json'])
  )
  before = (at / file).read_bytes()
  new = json_file(parsed(before)) if file.endswith('.json') else tensors_file(before)
  raw = draws.draw(new)
  (at / file).write_bytes(raw)
  found = outcome(lambda: load_hf_peft(at, tiny_backbone(), params=tiny_frozen()), at)
  if found is REFUSED:
    return
  ours = found.peft.merge(found.delta, tiny_frozen())['block_0']['attn']['q']['kernel']
  base = np.asarray(tiny_frozen()['block_0']['attn']['q']['kernel'], np.float64)
  config = json.loads((at / 'adapter_config.json').read_text())
  theirs = own_tensors((at / 'adapter_model.safetensors').read_bytes())
  one = 'base_model.model.blocks.0.attn.qkv'
  part = slice(8)
  if kind == 'ia3':
    want = base * theirs[f'{one}.ia3_l'][part, 0]
  else:
    scale = config['lora_alpha'] / (config['r'] ** (0.5 if config.get('use_rslora') else 1))
    for key, value in (config.get('alpha_pattern') or {}).items():
      assert key, value
      return  # Patterns are compared with peft's in tests/parity.
    b = theirs[f'{one}.lora_B.weight'].astype(np.float64)[part]
    want = base + scale * (b @ theirs[f'{one}.lora_A.weight'].astype(np.float64)).T
  np.testing.assert_allclose(ours, want, rtol=2e-5, atol=2e-5 * max(1, np.abs(want).max()))


# --- data


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
  """Bytes of an .npz, and what is in it."""
  at = tmp_path_factory.mktemp('data') / 'mine.npz'
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1)).astype(np.uint8)
  fields = {'images': images, 'labels': np.array([0, 1, 1, 0]), 'class_names': np.array(['a', 'b'])}
  np.savez(at, **fields)
  return at.read_bytes(), fields


@fuzzed(80)
@given(draws=st.data())
def test_archives(draws, archive, tmp_path):
  raw, fields = archive
  path = tmp_path / 'mine.npz'
  if draws.draw(st.booleans()):
    path.write_bytes(draws.draw(damaged(raw)))
  else:  # Members that are whole and hold something else, or damage below a good checksum.
    name = draws.draw(st.sampled_from(list(fields)))
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(path, 'w') as new:
      for member in old.namelist():
        part = old.read(member)
        fresh = member == f'{name}.npy'
        new.writestr(member, draws.draw(damaged(part)) if fresh else part)
  found = outcome(lambda: data.npz(path), path)
  if found is REFUSED:
    return
  with np.load(path, allow_pickle=False) as file:
    np.testing.assert_array_equal(found.inputs, file['images'])
    np.testing.assert_array_equal(found.labels, file['labels'])
    assert found.class_names == tuple(map(str, file['class_names'].tolist()))
  assert found.inputs.dtype in (np.uint8, np.int32)
  assert found.labels.min() >= 0 and found.labels.max() < len(found.class_names)


@pytest.fixture(scope='module')
def pictures():
  """Bytes of one image in several formats, some with an orientation."""
  pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6
  found = {}
  for kind, more in (('png', {'exif': exif}), ('jpeg', {'exif': exif}), ('gif', {}), ('tiff', {})):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    found[kind] = file.getvalue()
  return found


@fuzzed(60)
@given(draws=st.data())
def test_images(draws, pictures, tmp_path):
  kind = draws.draw(st.sampled_from(sorted(pictures)))
  path = tmp_path / f'mine.{kind}'
  path.write_bytes(draws.draw(damaged(pictures[kind])))
  found = outcome(lambda: data.image_files(path, size=4, convert=True)[np.array([0])], path)
  assert found is REFUSED or (found.shape == (1, 4, 4, 3) and found.dtype == np.uint8)


@fuzzed(60)
@given(draws=st.data())
def test_tables(draws, tmp_path):
  rows = [{'text': 'a "b"', 'label': 'x'}, {'text': 'c,\nd', 'label': 'y'}]
  as_lines = draws.draw(st.booleans())
  path = tmp_path / ('mine.jsonl' if as_lines else 'mine.csv')
  raw = b'text,label\n"a ""b""",x\n"c,\nd",y\n'
  raw = b'\n'.join(json.dumps(row).encode() for row in rows) if as_lines else raw
  path.write_bytes(raw)
  assert [line.values for line in read_table(path, ['text', 'label'])] == rows
  path.write_bytes(draws.draw(damaged(raw)))
  found = outcome(lambda: read_table(path, ['text', 'label']), path)
  if found is not REFUSED:
    assert all(
      set(line.values) == {'text', 'label'} and all(line.values.values()) for line in found
    )


# --- work directories


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A work directory of two tasks that are done."""
  at = tmp_path_factory.mktemp('work') / 'run'
  run(tiny_experiment('finetune'), at, silent())
  return at


@fuzzed(60)
@given(draws=st.data())
def test_work_directories(draws, finished, tmp_path):
  at = tmp_path / 'run'
  at.mkdir(exist_ok=True)
  for name in ('config.json', 'results.json', 'metrics.jsonl'):
    shutil.copy(finished / name, at / name)
  file = draws.draw(st.sampled_from(['config.json', 'results.json', 'metrics.jsonl']))
  before = (at / file).read_bytes()
  if file == 'metrics.jsonl':
    first, *rest = before.splitlines()
    raw = b'\n'.join([*rest, draws.draw(json_file(json.loads(first))), b''])
  else:
    raw = draws.draw(json_file(parsed(before)))
  (at / file).write_bytes(raw)
  facts = outcome(lambda: inspect_run(at))
  assert facts is not REFUSED  # It says what is damaged.
  found = outcome(lambda: read_run(at), at)
  if not draws.draw(st.integers(0, 7)):  # Drawings take their time.
    assert (outcome(lambda: write_page(at), at) is REFUSED) == (found is REFUSED)
  if not draws.draw(st.integers(0, 3)):
    table = outcome(lambda: comparison_markdown([at, finished]), at)
    assert (table is REFUSED) == (found is REFUSED)
  if found is REFUSED:
    return
  matrix = parsed((at / 'results.json').read_bytes())[f'{found.measure.key}_matrix']
  rows = [[np.nan if cell is None else cell for cell in row] for row in matrix if row]
  np.testing.assert_array_equal(found.matrix, np.array(rows)[: len(found.matrix)])
  assert set(map(np.isfinite, found.metrics.values())) <= {True}
