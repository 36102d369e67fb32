"""Adapters of pre-trained weights, DINOv2-S and SmolLM2-135M, here and in huggingface/peft.

The weights are not part of the repository: without `PECFT_REAL_WEIGHTS` the tests are skipped. It
names a folder with `dinov2_small/timm/model.safetensors`, timm's `vit_small_patch14_dinov2`, and
`smollm2_135m/` with `config.json` and `model.safetensors` as transformers reads them.

Layers of width 384 and 576, 12 and 30 of them, in float32: tolerance 1e-4 of logits around 1.
"""

import copy
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_pairs import CLASSES, Pair, adapted, our_logits
from safetensors.numpy import load_file, save_file

from pecft_jax import peft
from pecft_jax.backbones import decoder, load_llama, load_timm, vit
from pecft_jax.interop import load_hf_peft, save_hf_peft

torch = pytest.importorskip('torch')
timm = pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')
hf = pytest.importorskip('peft')

FOLDER = os.environ.get('PECFT_REAL_WEIGHTS', '')
pytestmark = pytest.mark.skipif(not FOLDER, reason='needs PECFT_REAL_WEIGHTS, a folder of weights')

ATOL, SPREAD = 1e-4, 0.02
SIDE, PATCH, LENGTH, PAD = 56, 14, 12, 2


@pytest.fixture(scope='module')
def dinov2(tmp_path_factory):
  """Without LayerScale, which is exact in the linear layers before it, at 4 x 4 patches."""
  tensors = load_file(pathlib.Path(FOLDER) / 'dinov2_small/timm/model.safetensors')
  position = torch.tensor(tensors['pos_embed'])
  grid = position[:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
  grid = torch.nn.functional.interpolate(grid, size=(SIDE // PATCH,) * 2, mode='bicubic')
  grid = grid.flatten(2).transpose(1, 2)
  tensors['pos_embed'] = torch.cat([position[:, :1], grid], 1).numpy()
  for block in range(12):
    for scale, layer in (('ls1', 'attn.proj'), ('ls2', 'mlp.fc2')):
      gamma = tensors.pop(f'blocks.{block}.{scale}.gamma')
      tensors[f'blocks.{block}.{layer}.weight'] *= gamma[:, None]
      tensors[f'blocks.{block}.{layer}.bias'] *= gamma
  path = tmp_path_factory.mktemp('dinov2') / 'model.safetensors'
  save_file(tensors, path)
  model = timm.models.VisionTransformer(
    img_size=SIDE, patch_size=PATCH, embed_dim=384, depth=12, num_heads=6, num_classes=CLASSES
  )
  model.load_state_dict({name: torch.tensor(t) for name, t in tensors.items()}, strict=False)
  ours = vit(
    image_size=SIDE, patch=PATCH, width=384, depth=12, heads=6, mean=(0.5,) * 3, std=(0.5,) * 3
  )
  x = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
  forward = lambda model: model(torch.tensor(x).permute(0, 3, 1, 2))
  theirs = lambda: copy.deepcopy(model).eval()
  return Pair(theirs, ours, load_timm(path, ours).params, jnp.asarray(x), forward)


@pytest.fixture(scope='module')
def smollm2():
  folder = pathlib.Path(FOLDER) / 'smollm2_135m'
  model = transformers.LlamaForSequenceClassification.from_pretrained(
    folder, num_labels=CLASSES, dtype=torch.float32
  )
  model.score = torch.nn.Linear(576, CLASSES)
  config = json.loads((folder / 'config.json').read_text())
  ours = decoder(
    vocabulary=config['vocab_size'], width=576, depth=30, heads=9, kv_heads=3, hidden=1536,
    length=LENGTH, eps=config['rms_norm_eps'], pad=PAD, rope_theta=config['rope_theta'],
  )  # fmt: skip
  ids = np.random.default_rng(0).integers(3, 49152, (2, LENGTH)).astype(np.int32)
  ids[1, 8:] = PAD

  def forward(model):
    mask = torch.tensor(ids != PAD).long()
    return model(input_ids=torch.tensor(ids).long(), attention_mask=mask).logits

  theirs = lambda: copy.deepcopy(model).eval()
  params = load_llama(folder / 'model.safetensors', ours).params
  return Pair(theirs, ours, params, jnp.asarray(ids), forward)


QV, UP = r'attn/(q|v)$', r'mlp/(fc1|up)$'
OURS = {
  'lora of two ranks': peft.chain(a=peft.lora(QV, 4, alpha=8.0), b=peft.lora(UP, 2, alpha=4.0)),
  'dora': peft.dora(r'attn/out$', 4),
  'ia3': peft.ia3(),
  'vera': peft.vera(QV, 16),
  'oft': peft.oft(UP, 32),
  'loha': peft.loha(QV, 4),
}


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('model', ['dinov2', 'smollm2'])
def test_their_library_computes_the_same_with_what_we_write(model, name, request, tmp_path):
  pair = request.getfixturevalue(model)
  found = adapted(pair.ours, pair.params, OURS[name], spread=SPREAD)
  save_hf_peft(tmp_path / 'ours', pair.ours, found, pair.params)
  config = json.loads((tmp_path / 'ours/adapter_config.json').read_text())
  assert config['modules_to_save'] == ['head' if model == 'dinov2' else 'score']
  assert bool(config.get('rank_pattern')) == (name == 'lora of two ranks')
  theirs = hf.PeftModel.from_pretrained(pair.theirs(), tmp_path / 'ours').eval()
  want = our_logits(pair.ours, pair.params, found, pair.x)
  np.testing.assert_allclose(pair.logits(theirs), want, atol=ATOL)
  with theirs.disable_adapter():
    assert np.abs(pair.logits(theirs) - want).max() > 100 * ATOL
  back = load_hf_peft(tmp_path / 'ours', pair.ours)
  before, after = sites_of(found.delta), sites_of(back.delta)
  added = after.keys() - before.keys()
  # Factors of a layer that is q, k and v are of all three: those of q are one.
  assert bool(added) == (name == 'ia3' and model == 'dinov2')
  assert all(at.endswith('attn/q') and (after[at].scale == 1).all() for at in added)
  equal(before, {at: leaf for at, leaf in after.items() if at not in added})
  equal(found.head, back.head)


THEIRS = {
  'lora of two ranks': dict(
    cls='LoraConfig', r=4, lora_alpha=8, rank_pattern={r'blocks.0.attn.qkv|layers.0.*': 2}
  ),
  'dora': dict(cls='LoraConfig', r=4, use_dora=True),
  'ia3': dict(cls='IA3Config', feedforward_modules=[]),
  'vera': dict(cls='VeraConfig', r=16),
  'oft': dict(cls='OFTConfig', oft_block_size=32),
  'loha': dict(cls='LoHaConfig', r=4, alpha=8),
}


@pytest.mark.parametrize('name', THEIRS)
@pytest.mark.parametrize('model', ['dinov2', 'smollm2'])
def test_we_compute_the_same_with_what_they_write(model, name, request, tmp_path):
  pair = request.getfixturevalue(model)
  options = dict(THEIRS[name])
  layers, head = (['qkv'], 'head') if model == 'dinov2' else (['q_proj', 'v_proj'], 'score')
  cls = getattr(hf, options.pop('cls'))
  config = cls(**options, target_modules=layers, modules_to_save=[head])
  theirs = hf.get_peft_model(pair.theirs(), config).eval()
  plain = pair.logits(theirs)
  torch.manual_seed(1)
  with torch.no_grad():
    for parameter in theirs.parameters():
      if parameter.requires_grad:
        parameter.add_(SPREAD * torch.randn_like(parameter))
  theirs.save_pretrained(tmp_path / 'theirs')
  found = load_hf_peft(tmp_path / 'theirs', pair.ours)
  want = pair.logits(theirs)
  assert np.abs(plain - want).max() > 100 * ATOL
  np.testing.assert_allclose(our_logits(pair.ours, pair.params, found, pair.x), want, atol=ATOL)
  if name == 'vera':  # Its factors come from a generator of torch, and are not part of the delta.
    with pytest.raises(ValueError, match='factors that were given'):
      written_again(pair, tmp_path / 'theirs', tmp_path / 'again')
  else:
    written_again(pair, tmp_path / 'theirs', tmp_path / 'again')


def written_again(pair, directory, other):
  """What we read of a file, and the file that we write of it, are read as the same bits."""
  first = load_hf_peft(directory, pair.ours)
  save_hf_peft(other, pair.ours, first, pair.params)
  second = load_hf_peft(other, pair.ours)
  equal(first[1:], second[1:])


def equal(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for first, second in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(first, second)


def sites_of(delta):
  """The adapters by site, whatever chain they are in."""
  parts = [sites_of(each) if isinstance(each, dict) else {at: each} for at, each in delta.items()]
  return {at: leaf for part in parts for at, leaf in part.items()}
