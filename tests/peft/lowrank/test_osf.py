"""OSF, against numpy in float64 and huggingface/peft."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layers import BIAS, D_IN, D_OUT, PARAMS, W, X, noise, run, started, wide

from pecft_jax.backbones.core.layers import linear
from pecft_jax.peft import combine, osf, split_kept
from pecft_jax.typing import Site

K = 2
TARGET = noise(2, 3, D_OUT, seed=9)


def moved(leaf):
  return leaf._replace(u=leaf.u + noise(*leaf.u.shape), s=leaf.s - 0.5, v=2 * leaf.v)


def loss(leaf, peft, w=W):
  out = peft.intercept({'fc': leaf}, Site('linear', 'fc'), linear, X, w, BIAS)
  return jnp.square(out - TARGET).sum()


def gradients(leaf, peft):
  active, kept = split_kept(leaf)
  return jax.grad(lambda active: loss(combine(active, kept), peft))(active)


def test_the_minor_part_is_replaced():
  peft = osf('fc', rank=K)
  leaf = moved(started(peft))
  u, s, v = np.linalg.svd(wide(W), full_matrices=False)
  want = (u[:, :K] * s[:K]) @ v[:K] + (wide(leaf.u) * wide(leaf.s)) @ wide(leaf.v)
  np.testing.assert_allclose(run(peft, leaf), wide(X) @ want + BIAS, atol=2e-5)
  np.testing.assert_allclose(peft.merge({'fc': leaf}, PARAMS)['fc']['w'], want, atol=1e-5)


def test_gradients_are_taken_off_the_principal_part():
  peft = osf('fc', rank=K)
  leaf = moved(started(peft))
  u, _, v = np.linalg.svd(wide(W), full_matrices=False)
  grads = gradients(leaf, peft)
  error = 2 * (run(peft, leaf) - wide(TARGET))
  whole = np.einsum('bti,bto->io', wide(X), error)  # Of the weight.
  off = lambda basis, x: x - basis @ (basis.T @ x)
  want_u = off(u[:, :K], whole @ (wide(leaf.s)[:, None] * wide(leaf.v)).T)
  want_v = off(v[:K].T, ((wide(leaf.u) * wide(leaf.s)).T @ whole).T).T
  np.testing.assert_allclose(grads.u, want_u, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(grads.v, want_v, rtol=1e-4, atol=1e-3)
  want_s = np.diag(wide(leaf.u).T @ whole @ wide(leaf.v).T)
  np.testing.assert_allclose(grads.s, want_s, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('exact', [True, False])
def test_steps_of_adam_are_put_back_where_asked(exact):
  peft = osf('fc', rank=K, exact=exact)
  active, kept = split_kept(started(peft))
  optimizer = optax.adam(0.1)
  updates, _ = optimizer.update(gradients(combine(active, kept), peft), optimizer.init(active))
  leaf = combine(optax.apply_updates(active, updates), kept)
  if exact:
    leaf = peft.after({'fc': leaf}, {'fc': None}, jnp.zeros(()))['fc']
  frozen = leaf.frozen.value
  inside = max(np.abs(frozen.u_high.T @ leaf.u).max(), np.abs(leaf.v @ frozen.v_high.T).max())
  assert (inside < 1e-5) == exact
  # What the weight does with the principal subspace, on both sides, is what it did.
  new = peft.merge({'fc': leaf}, PARAMS)['fc']['w']
  change = np.abs(frozen.u_high.T @ (new - W) @ frozen.v_high.T).max()
  assert (change < 1e-5) == exact


def test_half_is_preserved_by_default():
  leaf = started(osf('fc'))
  assert leaf.u.shape == (D_IN, 3) and leaf.frozen.value.u_high.shape == (D_IN, 3)


def test_bad_ranks_are_refused():
  with pytest.raises(ValueError, match='rank must be at least 1, got 0'):
    osf(rank=0)
  with pytest.raises(ValueError, match=r'fc: expected a rank from 1 to 5, .* got 6'):
    started(osf('fc', rank=6))


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('transposed', [False, True])
def test_a_step_of_peft_leads_to_the_same_adapter(optimizer, transposed):
  torch = pytest.importorskip('torch')
  hf = pytest.importorskip('peft')
  w = W.T.copy() if transposed else W
  x = np.random.default_rng(3).normal(size=(2, 3, w.shape[0])).astype(np.float32)
  model = torch.nn.Sequential(torch.nn.Linear(*w.shape))
  model[0].weight.data = torch.tensor(w.T.copy())
  model[0].bias.data[:] = 0
  theirs = hf.get_peft_model(model, hf.OSFConfig(target_modules=['0'], effective_rank=K))
  low = theirs.get_base_model()[0].osf_svd_params['default']
  with torch.no_grad():
    for p in low.values():
      p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
  get = lambda name: jnp.asarray(low[name].detach().numpy().copy())
  leaf = started(osf('fc', K), {'fc': {'w': jnp.asarray(w), 'b': jnp.zeros(w.shape[1])}})
  leaf = leaf._replace(u=get('V_low').T, s=get('S_low'), v=get('U_low').T)
  peft = osf('fc', K, exact=False)
  site, zero = Site('linear', 'fc'), jnp.zeros(w.shape[1])
  ours = lambda leaf: peft.intercept({'fc': leaf}, site, linear, x, w, zero)
  out = theirs(torch.tensor(x))
  np.testing.assert_allclose(ours(leaf), out.detach().numpy(), atol=2e-5)
  step = {'SGD': dict(lr=0.01), 'AdamW': dict(lr=0.01, weight_decay=0.1)}[optimizer]
  their_step = getattr(torch.optim, optimizer)(low.values(), **step)
  out.square().sum().backward()
  their_step.step()
  active, kept = split_kept(leaf)
  grads = jax.grad(lambda a: jnp.square(ours(combine(a, kept))).sum())(active)
  make = {'SGD': optax.sgd(0.01), 'AdamW': optax.adamw(0.01, weight_decay=0.1)}[optimizer]
  updates, _ = make.update(grads, make.init(active), active)
  new = optax.apply_updates(active, updates)
  for name, own in {'V_low': new.u.T, 'S_low': new.s, 'U_low': new.v.T}.items():
    np.testing.assert_allclose(own, low[name].detach().numpy(), atol=1e-4, err_msg=name)
