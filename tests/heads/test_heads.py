"""Heads: their mathematics against torch, and what holds for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.about import tinies
from pecft_jax.heads import HEADS, CosineHead, cosine, kac, linear, with_slots
from pecft_jax.paths import named_leaves
from pecft_jax.peft import split_kept
from pecft_jax.typing import Kept

torch = pytest.importorskip('torch')

WIDTH, CLASSES, ROWS = 6, 4, 5
TINIES = tinies(HEADS)
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def state_of(head, shift=0.0):
  state = head.init(jax.random.key(1), WIDTH, CLASSES)
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda a: a + shift * rng.normal(size=a.shape).astype(np.float32), state)


def tensor(a):
  return torch.tensor(np.asarray(a), requires_grad=True)


def theirs_linear(state, x):
  parts = {'kernel': tensor(state.kernel), 'bias': tensor(state.bias)}
  return parts, torch.nn.functional.linear(x, parts['kernel'].T, parts['bias'])


def theirs_cosine(state, x):
  parts = {'kernel': tensor(state.kernel), 'scale': tensor(state.scale)}
  unit = torch.nn.functional.normalize
  return parts, parts['scale'] * unit(x, dim=1) @ unit(parts['kernel'].T, dim=1).T


def theirs_kac(state, x):
  parts = {name: tensor(a) for name, a in state._asdict().items()}
  normed = torch.nn.functional.layer_norm(x, [WIDTH], parts['norm_scale'], parts['norm_bias'])
  count = parts['kernel'].shape[1]
  grid = torch.linspace(-2.0, 2.0, count)
  bumps = torch.exp(-(((normed[:, :, None] - grid) / (4.0 / (count - 1))) ** 2))
  return parts, bumps.reshape(len(x), -1) @ parts['kernel'].reshape(WIDTH * count, -1)


@pytest.mark.parametrize(
  ('head', 'theirs'),
  [(linear(), theirs_linear), (cosine(scale=3.0), theirs_cosine), (kac(centers=5), theirs_kac)],
  ids=['linear', 'cosine', 'kac'],
)
def test_logits_and_gradients_are_those_of_torch(head, theirs):
  state, x = state_of(head, 0.5), torch.tensor(X, requires_grad=True)
  parts, want = theirs(state, x)
  weights = np.random.default_rng(3).normal(size=(ROWS, CLASSES)).astype(np.float32)
  (want * torch.tensor(weights)).sum().backward()
  total = lambda state, x: (head.logits(state, x) * weights).sum()
  found, to_x = jax.grad(total, (0, 1))(state, jnp.asarray(X))
  np.testing.assert_allclose(head.logits(state, X), want.detach(), atol=1e-5)
  np.testing.assert_allclose(to_x, x.grad, atol=1e-5)
  for name, part in parts.items():
    np.testing.assert_allclose(getattr(found, name), part.grad, atol=1e-5, err_msg=name)


def test_cosine_starts_as_in_the_published_code():
  state = cosine().init(jax.random.key(0), 400, 30)
  assert state.scale == 1 and np.abs(state.kernel).max() <= 1 / 20
  np.testing.assert_allclose(np.asarray(state.kernel).std(), 1 / 20 / 3**0.5, rtol=0.02)


def test_a_fixed_scale_is_carried_and_not_trained():
  state = cosine(scale=20.0, learned=False).init(jax.random.key(0), WIDTH, CLASSES)
  assert isinstance(state.scale, Kept) and state.scale.value == 20
  assert [name for name, _ in named_leaves(split_kept(state)[0])] == ['kernel']
  logits = cosine(scale=20.0, learned=False).logits(state, X)
  np.testing.assert_allclose(logits, cosine().logits(CosineHead(state.kernel, 20.0), X))


@pytest.mark.parametrize('name', TINIES)
def test_lengths_of_rows_do_not_matter_to_cosine_and_kac(name):
  head = TINIES[name]()
  state = state_of(head, 0.5) if 'fixed' not in name else state_of(head)
  same = np.allclose(head.logits(state, 7 * X), head.logits(state, X), atol=1e-4)
  assert same == (name != 'linear')


@pytest.mark.parametrize('name', TINIES)
def test_slots_of_some_classes_come_from_another_state(name):
  head = TINIES[name]()
  old, new = state_of(head, 0.5), state_of(head, 1.5)
  classes = np.array([False, True, False, True])
  shared = jax.tree.map(lambda a, b: a, old, new)
  both = with_slots(shared, new, jnp.asarray(classes))
  # Shared parts are those of the first; so classes taken from it answer as before.
  np.testing.assert_array_equal(
    np.asarray(head.logits(both, X))[:, ~classes], np.asarray(head.logits(old, X))[:, ~classes]
  )
  kernel = np.asarray(both.kernel)
  np.testing.assert_array_equal(kernel[..., classes], np.asarray(new.kernel)[..., classes])
  assert jax.tree.structure(both) == jax.tree.structure(old)


def test_slots_need_axes():
  with pytest.raises(TypeError, match='names the axis `class`'):
    with_slots((jnp.ones(3),), (jnp.ones(3),), jnp.ones(3, bool))


@pytest.mark.parametrize('name', TINIES)
def test_an_awake_head_depends_on_the_features(name):
  head = TINIES[name]()
  state = head.init(jax.random.key(0), WIDTH, CLASSES)
  if head.awake is not None:
    state = head.awake(jax.random.key(5), state)
  moved = jax.grad(lambda x: jnp.sin(head.logits(state, x)).sum())(jnp.asarray(X))
  assert np.abs(np.asarray(moved)).min() > 0
  again = state if head.awake is None else head.awake(jax.random.key(6), state)
  np.testing.assert_array_equal(again.kernel, state.kernel)


@pytest.mark.parametrize('name', TINIES)
def test_what_is_linear_has_the_same_logits(name):
  head = TINIES[name]()
  assert (head.linear is not None) == (name == 'linear')
  if head.linear is not None:
    state = state_of(head, 0.5)
    kernel, bias = head.linear(state)
    np.testing.assert_allclose(X @ kernel + bias, head.logits(state, X), atol=1e-6)


def test_invalid_values_are_refused():
  with pytest.raises(ValueError, match='scale must be positive'):
    cosine(scale=0.0)
  with pytest.raises(ValueError, match='centers must be at least 2'):
    kac(centers=1)
  with pytest.raises(ValueError, match='reach must be positive'):
    kac(reach=-1.0)
