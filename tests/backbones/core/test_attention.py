"""Attention, compared with NumPy in float64 and with JAX's own function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones.core import attention
from pecft_jax.backbones.core.attention import attend, cudnn_fits
from pecft_jax.masks import Mask

LENGTHS = np.array([1, 4, 7], np.int32)
MASKS = {
  'none': None,
  'causal': Mask(causal=True),
  'lengths': Mask(LENGTHS),
  'causal lengths': Mask(LENGTHS, causal=True),
  'prefix': Mask(LENGTHS, causal=True, ahead=2),
  'array': np.random.default_rng(3).random((7, 9)) < 0.6,
  'arrays': np.random.default_rng(4).random((3, 7, 9)) < 0.6,
}


def inputs(queries=7, keys=7, heads=6, kv_heads=2, size=5, dtype=jnp.float32):
  """q, k, v, and the gradient of the output: B = 3."""
  shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)]
  made = jax.random.split(jax.random.key(0), 4)
  return [
    jax.random.normal(key, (3, *shape, size), dtype)
    for key, shape in zip(made, shapes, strict=True)
  ]


def in_float64(q, k, v, seen=None):
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  k, v = (a.repeat(q.shape[2] // a.shape[2], 2) for a in (k, v))
  scores = np.einsum('bqhk,bthk->bhqt', q, k) / np.sqrt(q.shape[-1])
  if seen is not None:
    scores = np.where(seen[..., None, :, :], scores, -1e30)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('bhqt,bthk->bqhk', weights / weights.sum(-1, keepdims=True), v)


def seen_by(mask, queries=7, keys=7):
  """[B or 1, Tq, T], from the definition, key by key."""
  if not isinstance(mask, Mask):
    return mask
  seen = np.ones((3, queries, keys), bool)
  for b, i, j in np.ndindex(seen.shape):
    own = j - mask.ahead
    real = mask.lengths is None or own < mask.lengths[b]
    seen[b, i, j] = real and (own <= i or not mask.causal)
  return seen


@pytest.mark.parametrize('name', MASKS)
def test_equals_numpy_in_float64(name):
  keys = 7 if name in {'none', 'causal', 'lengths', 'causal lengths'} else 9
  q, k, v, _ = inputs(keys=keys)
  got = jax.jit(attend)(q, k, v, MASKS[name])
  want = in_float64(q, k, v, seen_by(MASKS[name], keys=keys))
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('name', MASKS)
def test_gradients_equal_those_of_jax(name):
  keys = 7 if name in {'none', 'causal', 'lengths', 'causal lengths'} else 9
  q, k, v, g = inputs(keys=keys)
  seen = seen_by(MASKS[name], keys=keys)
  wide = None if seen is None else jnp.asarray(seen)[..., None, :, :]
  wide = wide[None] if wide is not None and wide.ndim == 3 else wide
  plain = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=wide)
  got = jax.vjp(lambda *args: attend(*args, MASKS[name]), q, k, v)[1](g)
  want = jax.vjp(plain, q, k, v)[1](g)
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6 * float(abs(other).max()) + 1e-6)


@pytest.mark.parametrize(('queries', 'keys'), [(1, 1), (1, 9), (3, 8)])
@pytest.mark.parametrize('kv_heads', [1, 6])
def test_any_number_of_queries_keys_and_shared_heads(queries, keys, kv_heads):
  q, k, v, _ = inputs(queries, keys, kv_heads=kv_heads)
  np.testing.assert_allclose(attend(q, k, v, None), in_float64(q, k, v), atol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_weights_and_outputs_alone(dtype):
  q, k, v, g = inputs(dtype=dtype)
  out, pull = jax.vjp(lambda *args: attend(*args, None), q, k, v)
  wide = [a.astype(jnp.float32) for a in (q, k, v, g)]
  want, pull_wide = jax.vjp(lambda *args: attend(*args, None), *wide[:3])
  step = float(jnp.finfo(dtype).eps)  # Values are of order 1.
  assert out.dtype == dtype
  np.testing.assert_allclose(out.astype(jnp.float32), want, atol=2 * step)
  for one, other in zip(pull(g), pull_wide(wide[3]), strict=True):
    assert one.dtype == dtype
    np.testing.assert_allclose(one.astype(jnp.float32), other, atol=8 * step)


def test_a_query_that_sees_nothing_gets_finite_numbers_and_gradients():
  q, k, v, g = inputs()
  nothing = np.zeros((7, 7), bool)
  out, pull = jax.vjp(lambda *args: attend(*args, nothing), q, k, v)
  mean = v.mean(1, keepdims=True).repeat(3, 2)
  np.testing.assert_allclose(out, jnp.broadcast_to(mean, out.shape), atol=1e-6)
  dq, dk, dv = pull(g)
  assert np.isfinite(dq).all() and np.isfinite(dk).all()
  shared = g.reshape(3, 7, 2, 3, 5).sum((1, 3)) / 7
  np.testing.assert_allclose(dv, jnp.broadcast_to(shared[:, None], dv.shape), atol=1e-6)


def test_a_gradient_for_each_example_equals_one_by_one():
  q, k, v, g = inputs()
  each = lambda q, k, v, g, length: jax.vjp(
    lambda *args: attend(*args, Mask(length, causal=True)), q, k, v
  )[1](g)
  args = [a[:, None] for a in (q, k, v, g, LENGTHS)]
  got = jax.vmap(each)(*args)
  want = each(q, k, v, g, LENGTHS)
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one[:, 0], other, atol=1e-6)


def test_the_weights_are_not_kept_for_the_backward_pass():
  q, k, v, _ = inputs(queries=50, keys=50)
  _, pull = jax.vjp(lambda *args: attend(*args, None), q, k, v)
  assert max(a.size for a in jax.tree.leaves(pull)) == q.size < 3 * 6 * 50 * 50


HALF = inputs(size=8, dtype=jnp.bfloat16)[:3]


@pytest.mark.parametrize('mask', [None, *(Mask(LENGTHS, causal=c) for c in (False, True))])
def test_cudnn_takes_half_precision_under_rules(mask):
  assert cudnn_fits(*HALF, mask)
  assert not cudnn_fits(*inputs(size=8)[:3], mask)


def test_cudnn_takes_no_other_arguments():
  half = lambda **sizes: inputs(**{'size': 8, 'dtype': jnp.bfloat16, **sizes})[:3]
  assert not cudnn_fits(*half(keys=9), Mask(causal=True, ahead=2))
  assert not cudnn_fits(*half(queries=1), None)
  assert not cudnn_fits(*half(queries=1, keys=1), None)
  assert not cudnn_fits(*half(size=12), None) and not cudnn_fits(*half(size=136), None)
  assert not cudnn_fits(*HALF, np.ones((7, 7), bool))
  (batch,) = jax.export.symbolic_shape('B')
  symbols = [jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in HALF]
  assert not cudnn_fits(*symbols, None)


@pytest.mark.parametrize('mask', [None, Mask(LENGTHS, causal=True)])
def test_what_goes_to_cudnn_is_batched_alike_and_lowers_elsewhere(monkeypatch, mask):
  """The choice, with the kernel replaced by a function that has as strict a rule for vmap."""
  seen = []

  def kernel(q, k, v, *, query_seq_lengths, key_value_seq_lengths, is_causal, implementation):
    assert implementation == 'cudnn'
    lengths = (query_seq_lengths, key_value_seq_lengths)
    seen.append([getattr(a, 'batch_dim', None) for a in (q, k, v, *lengths) if a is not None])
    assert q.shape[1] == k.shape[1] and q.shape[1] % 2 == 0  # Else it has no gradient.
    return attention._forward(q, k, v, Mask(key_value_seq_lengths, causal=is_causal))[0]

  monkeypatch.setattr(attention, '_on_nvidia', lambda: True)
  monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
  q, k, v = HALF
  each = jax.vmap(lambda q: attention._by_cudnn(q, k, v, mask))(jnp.stack([q, 2 * q]))
  assert set(seen[0]) == {0}
  for got, factor in zip(each, (1, 2), strict=True):
    want = attention._forward(factor * q, k, v, mask)[0]
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=0.05)
  loss = lambda *args: attend(*args, mask).astype(jnp.float32).sum()
  plain = lambda *args: attention._forward(*args, mask)[0].astype(jnp.float32).sum()
  got = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
  want = jax.jit(jax.grad(plain, (0, 1, 2)))(q, k, v)
  for one, other in zip(got, want, strict=True):
    np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), atol=0.05)
