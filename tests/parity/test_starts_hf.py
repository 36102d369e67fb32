"""Starts of LoRA that are read off data, LoftQ and LoRA+, beside those of huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_peft_hf import (  # Skips this module, too, where torch or peft is missing.
  D_IN,
  Mlp,
  found,
  hf,
  ours,
  torch,
)

from pecft_jax.backbones import loftq, vit
from pecft_jax.peft import corda, eva, lora, lora_ga, weight_sites
from pecft_jax.peft.weights import read
from pecft_jax.recipes import adam, lora_plus
from pecft_jax.schedules import constant
from pecft_jax.typing import Pretrained

THEIR_CORDA = pytest.importorskip('peft.tuners.lora.corda')
THEIR_OPTIMIZERS = pytest.importorskip('peft.optimizers')
LAYERS = ('fc1', 'fc2')
# Directions differ in size, so that randomised decompositions find them.
X = (np.random.default_rng(1).normal(size=(60, D_IN)) * 1.6 ** -np.arange(D_IN)).astype(np.float32)


def plain():
  """Their layers, our parameters, and what arrives at each layer."""
  torch.manual_seed(0)
  model = Mlp()
  array = lambda p: jnp.asarray(p.detach().numpy().T)
  params = {
    at: {'kernel': array(layer.weight), 'bias': array(layer.bias)}
    for at, layer in model.named_children()
  }
  hidden = jnp.tanh(X @ params['fc1']['kernel'] + params['fc1']['bias'])
  return model, params, {'fc1': jnp.asarray(X), 'fc2': hidden}


def calibrated(peft, params, taps):
  """The delta after a pass of one batch."""
  delta = peft.init(jax.random.key(0), weight_sites(params), params)
  calibration = peft.calibrate
  weights = {at: params[at]['kernel'] for at in LAYERS}
  statistics = calibration.empty(delta, weights)
  return calibration.finish(delta, calibration.add(statistics, taps, jnp.ones(len(X), bool)))


def test_eva():
  model, params, inputs = plain()
  config = hf.LoraConfig(
    r=2, target_modules=list(LAYERS), init_lora_weights='eva', eva_config=hf.EvaConfig(rho=2.0)
  )
  theirs = hf.tuners.lora.eva.get_eva_state_dict(
    model, [{'x': torch.tensor(X)}], config, forward_fn=lambda model, batch: model(**batch),
    prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False,
  )  # fmt: skip
  delta = calibrated(eva('fc', 2), params, {f'linear:{at}': x for at, x in inputs.items()})
  for at in LAYERS:
    a, want = np.asarray(delta[at].a), theirs[at].numpy()
    used = int(a.any(0).sum())
    assert used == len(want), at
    np.testing.assert_allclose(np.abs(want @ a[:, :used]), np.eye(used), atol=2e-3)


@pytest.mark.parametrize(('mode', 'method'), [('instruction', 'ipm'), ('knowledge', 'kpm')])
def test_corda(mode, method):
  model, params, inputs = plain()
  config = hf.LoraConfig(
    r=3, lora_alpha=6, target_modules=list(LAYERS), init_lora_weights='corda',
    corda_config=hf.tuners.lora.config.CordaConfig(corda_method=method),
  )  # fmt: skip
  THEIR_CORDA.preprocess_corda(model, config, run_model=lambda: model(torch.tensor(X)))
  adapted = hf.get_peft_model(model, config)
  peft = corda('fc', 3, 6.0, mode=mode)
  taps = {f'linear:{at}': (x, params[at]['kernel']) for at, x in inputs.items()}
  delta = calibrated(peft, params, taps)
  for at in LAYERS:
    a, b = (found(adapted, at, f'lora_{part}') for part in 'AB')
    size = np.abs(a @ b).max()
    np.testing.assert_allclose(delta[at].a @ delta[at].b, a @ b, atol=2e-3 * size)
    # Inputs that are divided by their largest entry make one factor larger, the other smaller.
    ratio = np.linalg.norm(b, axis=1) / np.linalg.norm(delta[at].b, axis=1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=5e-3)
    kernel = params[at]['kernel'] - 2 * delta[at].a @ delta[at].b
    np.testing.assert_allclose(kernel, found(adapted, at, 'base_layer.weight'), atol=1e-3)


def test_lora_ga():
  model, params, _ = plain()
  config = hf.LoraConfig(
    r=3, lora_alpha=6, target_modules=list(LAYERS), init_lora_weights='lora_ga',
    lora_ga_config=hf.tuners.lora.config.LoraGAConfig(stable_gamma=9),
  )  # fmt: skip
  hf.tuners.lora.loraga.preprocess_loraga(
    model, config, lambda: (model(torch.tensor(X)) ** 3).mean().backward()
  )
  adapted = hf.get_peft_model(model, config)

  def loss(kernels):
    layer = lambda at, x: x @ kernels[at] + params[at]['bias']
    return jnp.mean(layer('fc2', jnp.tanh(layer('fc1', X))) ** 3)

  grads = jax.grad(loss)({at: params[at]['kernel'] for at in LAYERS})
  peft = lora_ga('fc', 3, 6.0, gamma=9.0)
  delta = calibrated(peft, params, {f'gradient:{at}': g for at, g in grads.items()})
  for at in LAYERS:
    a, b = (found(adapted, at, f'lora_{part}') for part in 'AB')
    size = b.shape[1] ** 0.25 / 3
    s = np.linalg.svd(np.float64(grads[at]), compute_uv=False)[3:6]
    # Theirs are (U, c S V^T), ours (c U, c V^T); signs are arbitrary.
    np.testing.assert_allclose(np.abs(a.T @ delta[at].a), size * np.eye(3), atol=2e-3)
    want = size**2 * np.diag(s)
    np.testing.assert_allclose(np.abs(delta[at].b @ b.T), want, atol=2e-3 * want.max())
    base = params[at]['kernel'] - 2 * a @ b
    np.testing.assert_allclose(base, found(adapted, at, 'base_layer.weight'), atol=1e-5)


def test_loftq_decomposes_what_quantising_loses_as_they_do():
  backbone = vit(
    image_size=4, channels=1, patch=2, width=16, depth=1, heads=2, mean=(0.5,), std=(0.5,)
  )
  model = Pretrained(backbone, backbone.init(jax.random.key(0)))
  small, peft = loftq(model, 'nf4', 'attn/q$', 3, 3.0, iterations=1)
  path = 'block_0/attn/q'
  w, q = (np.asarray(read(params, path).main) for params in (model.params, small.params))
  leaf = peft.init(jax.random.key(0), backbone.sites, small.params)[path]
  parts = hf.utils.loftq_utils._low_rank_decomposition(torch.tensor((w - q).T), 3)
  np.testing.assert_allclose(leaf.a @ leaf.b, (parts['L'] @ parts['R']).numpy().T, atol=1e-6)
  norms = np.linalg.norm(parts['L'].numpy(), axis=0)
  np.testing.assert_allclose(np.linalg.norm(leaf.b, axis=1), norms, rtol=1e-3)


def test_lora_plus():
  torch.manual_seed(0)
  model = hf.get_peft_model(Mlp(), hf.LoraConfig(r=3, target_modules=list(LAYERS)))
  peft = lora('fc', 3, 8.0)
  apply = ours(model, peft)
  pair = lambda at: tuple(found(model, at, f'lora_{part}') for part in 'AB')
  delta = {at: type(leaf)(*pair(at)) for at, leaf in _shapes(peft, model).items()}
  optimizer = THEIR_OPTIMIZERS.create_loraplus_optimizer(
    model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.1
  )
  made = lora_plus(adam(0.01, schedule=constant, weight_decay=0.1), 8.0)
  state = made.tx.init(delta)
  for _ in range(4):
    optimizer.zero_grad()
    (model(torch.tensor(X)) ** 2).mean().backward()
    optimizer.step()
    grads = jax.grad(lambda d: jnp.mean(apply(d, X) ** 2))(delta)
    updates, state = made.tx.update(grads, state, delta, progress=jnp.zeros(()))
    delta = optax.apply_updates(delta, updates)
  for at in LAYERS:
    for one, want in zip(delta[at], pair(at), strict=True):
      np.testing.assert_allclose(one, want, atol=1e-5)


def _shapes(peft, model):
  params = {at: {'w': found(model, at, 'base_layer.weight')} for at in LAYERS}
  return peft.init(jax.random.key(0), weight_sites(params), params)
