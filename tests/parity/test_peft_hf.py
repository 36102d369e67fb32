"""The same layers with the same weights in huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import dora, ia3, lora, rslora, vera
from pecft_jax.peft.lowrank.dora import DoraDelta
from pecft_jax.peft.lowrank.lora import LoraDelta
from pecft_jax.peft.lowrank.vera import VeraDelta, shared_factors
from pecft_jax.peft.scaling.ia3 import Ia3Delta
from pecft_jax.typing import Site

torch = pytest.importorskip('torch')
hf = pytest.importorskip('peft')

D_IN, HIDDEN, D_OUT, RANK, ALPHA = 11, 13, 7, 3, 5.0
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5, D_IN)).astype(np.float32)


class Mlp(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.fc1 = torch.nn.Linear(D_IN, HIDDEN)
    self.fc2 = torch.nn.Linear(HIDDEN, D_OUT)

  def forward(self, x):
    return self.fc2(torch.tanh(self.fc1(x)))


def theirs(config):
  """The adapted model with every adapter weight drawn at random, and these by name."""
  torch.manual_seed(0)
  model = hf.get_peft_model(Mlp(), config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      if p.requires_grad:
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
        p.add_(0.3 * noise)
  return model


def found(model, layer, part):
  """A weight of an adapter, or of the layer under it, as ours: [d_in, d_out]."""
  (value,) = (
    tensor
    for name, tensor in (*model.named_parameters(), *model.named_buffers())
    if f'.{layer}.' in name and f'.{part}.' in f'{name}.'
  )
  return jnp.asarray(value.detach().numpy().T)


def ours(model, peft):
  """`(delta, x) -> y` over their base weights."""
  base = {
    layer: [found(model, layer, f'base_layer.{part}') for part in ('weight', 'bias')]
    for layer in ('fc1', 'fc2')
  }

  def apply(delta, x):
    run = lambda layer, x: peft.intercept(delta, Site('linear', layer), linear, x, *base[layer])
    return run('fc2', jnp.tanh(run('fc1', x)))

  return apply


def assert_same_outputs(model, apply, delta):
  with torch.no_grad():
    expected = model(torch.tensor(X)).numpy()
    plain = model.get_base_model()
    with model.disable_adapter():
      assert np.abs(expected - plain(torch.tensor(X)).numpy()).max() > 0.01
  np.testing.assert_allclose(apply(delta, X), expected, atol=1e-5)


def assert_same_gradients(model, apply, delta, parts, transposed=True):
  (model(torch.tensor(X)) ** 2).mean().backward()
  grads = jax.grad(lambda d: (apply(d, X) ** 2).mean())(delta)
  for layer, leaf in grads.items():
    for ours_name, part in parts.items():
      (p,) = (p for n, p in model.named_parameters() if f'.{layer}.{part}.' in n)
      got = getattr(leaf, ours_name)
      want = p.grad.numpy()
      want = want.T if transposed else want
      np.testing.assert_allclose(got, want, atol=1e-5, err_msg=f'{layer}/{part}')


LORA_PARTS = {'a': 'lora_A', 'b': 'lora_B'}


@pytest.mark.parametrize('stabilised', [False, True])
def test_lora(stabilised):
  model = theirs(
    hf.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=['fc1', 'fc2'], use_rslora=stabilised)
  )
  peft = (rslora if stabilised else lora)('fc', RANK, ALPHA)
  delta = {
    layer: LoraDelta(found(model, layer, 'lora_A'), found(model, layer, 'lora_B'))
    for layer in ('fc1', 'fc2')
  }
  apply = ours(model, peft)
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, LORA_PARTS)


def test_dora():
  model = theirs(
    hf.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=['fc1', 'fc2'], use_dora=True)
  )
  parts = LORA_PARTS | {'magnitude': 'lora_magnitude_vector'}
  delta = {
    layer: DoraDelta(*(found(model, layer, part) for part in parts.values()))
    for layer in ('fc1', 'fc2')
  }
  apply = ours(model, dora('fc', RANK, ALPHA))
  assert_same_outputs(model, apply, delta)
  assert_same_gradients(model, apply, delta, parts)


def test_ia3():
  model = theirs(hf.IA3Config(target_modules=['fc1', 'fc2'], feedforward_modules=['fc2']))
  delta = {
    'outputs': {'fc1': Ia3Delta(found(model, 'fc1', 'ia3_l').ravel())},
    'inputs': {'fc2': Ia3Delta(found(model, 'fc2', 'ia3_l').ravel())},
  }
  assert_same_outputs(model, ours(model, ia3('fc1', 'fc2')), delta)


def test_vera():
  """Their shared factors replaced by ours, which are drawn another way but shaped the same."""
  model = theirs(hf.VeraConfig(r=RANK, target_modules=['fc1', 'fc2']))
  a, b = shared_factors(7, RANK, HIDDEN, HIDDEN, fan_in=HIDDEN)
  theirs_a, theirs_b = model.base_model.vera_A['default'], model.base_model.vera_B['default']
  with torch.no_grad():
    assert theirs_a.shape == a.T.shape and theirs_b.shape == b.T.shape
    assert theirs_a.abs().max().item() <= np.sqrt(6 / HIDDEN)  # Ours are drawn within the same.
    assert np.abs(a).max() <= np.sqrt(6 / HIDDEN)
    theirs_a.copy_(torch.tensor(np.array(a.T)))
    theirs_b.copy_(torch.tensor(np.array(b.T)))
  delta = {
    layer: VeraDelta(found(model, layer, 'vera_lambda_d'), found(model, layer, 'vera_lambda_b'))
    for layer in ('fc1', 'fc2')
  }
  apply = ours(model, vera('fc', RANK, seed=7, fan_in=HIDDEN))
  assert_same_outputs(model, apply, delta)
