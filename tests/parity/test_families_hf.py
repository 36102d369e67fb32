"""Families of low-rank updates beside the same layers in huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_peft_hf import (  # Skips this module, too, where torch or peft is missing.
  RANK,
  X,
  assert_same_gradients,
  assert_same_outputs,
  found,
  hf,
  ours,
  theirs,
  torch,
)

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import (
  DeloraDelta,
  HiraDelta,
  LoraFaDelta,
  MissDelta,
  RandloraDelta,
  delora,
  hira,
  lora_fa,
  miss,
  orthonormal_lora,
  randlora,
  weight_sites,
)
from pecft_jax.peft.lowrank.randlora import combined, random_bases
from pecft_jax.peft.starts import STARTS
from pecft_jax.typing import Kept, Site

LAYERS = ('fc1', 'fc2')


def test_hira():
  model = theirs(hf.HiraConfig(r=RANK, target_modules=list(LAYERS)))
  parts = {'a': 'hira_A', 'b': 'hira_B'}
  delta = {at: HiraDelta(*(found(model, at, part) for part in parts.values())) for at in LAYERS}
  apply = ours(model, hira('fc', RANK))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts)


def test_miss():
  model = theirs(hf.MissConfig(r=4, target_modules=list(LAYERS)))  # Divides neither width.
  parts = {'block': 'miss_block'}
  delta = {at: MissDelta(found(model, at, 'miss_block').T) for at in LAYERS}
  apply = ours(model, miss('fc', 4))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts, transposed=False)


def test_delora():
  model = theirs(hf.DeloraConfig(r=RANK, delora_lambda=2.0, target_modules=list(LAYERS)))
  parts = {'a': 'delora_A', 'b': 'delora_B', 'strength': 'delora_lambda'}
  delta = {
    at: DeloraDelta(
      *(found(model, at, part) for part in parts.values()), Kept(found(model, at, 'delora_w_norm'))
    )
    for at in LAYERS
  }
  apply = ours(model, delora('fc', RANK))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts)


def test_lora_fa():
  model = theirs(hf.LoraConfig(r=RANK, lora_alpha=5.0, target_modules=list(LAYERS)))
  delta = {
    at: LoraFaDelta(found(model, at, 'lora_B'), Kept(found(model, at, 'lora_A'))) for at in LAYERS
  }
  apply = ours(model, lora_fa('fc', RANK, 5.0))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, {'b': 'lora_B'})


def test_randlora():
  """Their shared bases replaced by ours, which are drawn another way but shaped the same."""
  model = theirs(hf.RandLoraConfig(r=RANK, randlora_alpha=5.0, target_modules=list(LAYERS)))
  a, b = random_bases(7, RANK, 13, 13)
  theirs_a, theirs_b = (model.base_model.__getattr__(f'randlora_{p}')['default'] for p in 'AB')
  assert all(base.std().item() == pytest.approx(1, rel=0.01) for base in (theirs_a, theirs_b))
  with torch.no_grad():
    theirs_a.copy_(torch.tensor(np.array(a[:, None])))
    theirs_b.copy_(torch.tensor(np.array(b)))
  parts = {'rows': 'randlora_lambda', 'columns': 'randlora_gamma'}
  delta = {
    at: RandloraDelta(*(found(model, at, part).T for part in parts.values())) for at in LAYERS
  }
  apply = ours(model, randlora('fc', RANK, 5.0, seed=7))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts, transposed=False)


def test_randlora_on_a_square_layer():
  layer = torch.nn.Sequential(torch.nn.Linear(8, 8))
  model = hf.get_peft_model(layer, hf.RandLoraConfig(r=RANK, target_modules=['0']))
  (adapted,) = (m for m in model.modules() if hasattr(m, 'get_delta_weight'))
  with torch.no_grad():
    adapted.randlora_lambda['default'].normal_()
    want = adapted.get_delta_weight('default').numpy().T
  array = lambda buffers: jnp.asarray(buffers['default'].detach().numpy())
  delta = RandloraDelta(array(adapted.randlora_lambda), array(adapted.randlora_gamma))
  small, large = array(adapted.randlora_A)[:, 0], array(adapted.randlora_B)
  got = 640 / RANK * combined(delta, small, large, wide=True)
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_orthonormal_lora():
  config = hf.LoraConfig(r=3, lora_alpha=6.0, init_lora_weights='olora', target_modules=['0'])
  layer = torch.nn.Linear(11, 7)
  w, bias = (jnp.asarray(p.detach().numpy().T) for p in (layer.weight, layer.bias))
  model = hf.get_peft_model(torch.nn.Sequential(layer), config)
  params = {'fc': {'w': w, 'b': bias}}
  peft = orthonormal_lora('fc', rank=3, alpha=6.0)
  delta = peft.init(jax.random.key(0), weight_sites(params), params)
  np.testing.assert_allclose(
    delta['fc'].a @ delta['fc'].b,
    found(model, '0', 'lora_A') @ found(model, '0', 'lora_B'),
    atol=1e-5,
  )
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:
        p.add_(0.3 * torch.randn(p.shape))
    want = model(torch.tensor(X)).numpy()
  moved = delta['fc']._replace(a=found(model, '0', 'lora_A'), b=found(model, '0', 'lora_B'))
  got = peft.intercept({'fc': moved}, Site('linear', 'fc'), linear, X, w, bias)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('start', ['gaussian', 'orthogonal'])
def test_starts_of_lora_have_their_moments(start):
  layer = torch.nn.Sequential(torch.nn.Linear(400, 300))
  torch.manual_seed(0)
  model = hf.get_peft_model(
    layer, hf.LoraConfig(r=8, init_lora_weights=start, target_modules=['0'])
  )
  own = STARTS[start](jax.random.key(0), 400, 300, 8)
  for factor, part in zip(own, ('lora_A', 'lora_B'), strict=True):
    want = float(np.std(found(model, '0', part)))
    assert float(np.std(factor)) == pytest.approx(want, rel=0.05)
