"""Tolerances: the same sums of some dozen terms of order 1 in another order, in float32."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.backbones import decoder, stack_blocks, unstack_blocks
from pecft_jax.typing import SITE_KINDS, PeftTransform

PAD = 36
KEPT = [
  np.arange(11),
  np.arange(7),
  np.arange(3, 11),
  np.arange(2, 9),
  np.arange(1),
]  # Real tokens.


def test_features_have_the_promised_shapes(tiny_decoder, decoder_params, texts):
  features = tiny_decoder.apply(decoder_params, texts)
  assert features.tokens.shape == (5, 11, 24)
  last = [kept[-1] for kept in KEPT]
  np.testing.assert_array_equal(features.pooled, features.tokens[np.arange(5), last])


def test_inputs_are_described_as_token_ids(tiny_decoder):
  spec = tiny_decoder.inputs
  assert (spec.shape, spec.dtype, spec.what, spec.pad) == ((16,), np.int32, 'token ids', PAD)


def test_every_kind_of_site_is_there_for_every_block(tiny_decoder):
  names = {(spec.site.kind, spec.site.path) for spec in tiny_decoder.sites}
  assert len(names) == len(tiny_decoder.sites) == 3 * 13 + 2
  for i in range(3):
    for name in ('attn/q', 'attn/k', 'attn/v', 'attn/out', 'mlp/gate', 'mlp/up', 'mlp/down'):
      assert ('linear', f'block_{i}/{name}') in names
    assert {('attend', f'block_{i}/attn'), ('sublayer', f'block_{i}/attn')} <= names
    assert {('sublayer', f'block_{i}/mlp'), ('tokens', f'block_{i}')} <= names
    assert {('norm', f'block_{i}/ln1'), ('norm', f'block_{i}/ln2')} <= names
  assert {('norm', 'norm'), ('tokens', 'encoder')} <= names
  assert {kind for kind, _ in names} == set(SITE_KINDS)


def test_sites_are_those_that_a_call_passes_through(tiny_decoder, decoder_params, texts):
  passed = []
  shapes = lambda args: jax.tree.map(lambda a: a.shape[2:], args)  # Without [B, T].

  def record(delta, site, next_fn, *args):
    out = next_fn(*args)
    passed.append((site, shapes(args), out.shape[2:]))
    return out

  tiny_decoder.apply(decoder_params, texts, {}, peft=PeftTransform(lambda *_: {}, record))
  want = [(spec.site, shapes(spec.args), spec.out.shape[2:]) for spec in tiny_decoder.sites]
  assert passed == want


def test_a_later_token_changes_no_earlier_output(tiny_decoder, decoder_params, texts):
  changed = texts.copy()
  changed[0, 6] = (texts[0, 6] + 1) % 36
  before, after = (tiny_decoder.apply(decoder_params, ids).tokens for ids in (texts, changed))
  np.testing.assert_array_equal(before[0, :6], after[0, :6])
  assert np.abs(before[0, 6:] - after[0, 6:]).max(-1).min() > 1e-3
  np.testing.assert_array_equal(before[1:], after[1:])


def test_earlier_tokens_and_their_order_matter(tiny_decoder, decoder_params, texts):
  swapped = texts.copy()
  swapped[0, [2, 5]] = texts[0, [5, 2]]
  before, after = (tiny_decoder.apply(decoder_params, ids).pooled for ids in (texts, swapped))
  assert np.abs(before[0] - after[0]).max() > 1e-3


def test_padding_at_either_end_makes_no_difference(tiny_decoder, decoder_params, texts):
  features = tiny_decoder.apply(decoder_params, texts)
  for row, kept in enumerate(KEPT):
    alone = jax.jit(tiny_decoder.apply)(decoder_params, texts[row : row + 1, kept])
    np.testing.assert_allclose(features.tokens[row, kept], alone.tokens[0], atol=1e-5)
    np.testing.assert_allclose(features.pooled[row], alone.pooled[0], atol=1e-5)


def test_the_pad_is_never_looked_up(tiny_decoder, decoder_params, texts, decoder_sizes):
  other = decoder(**{**decoder_sizes, 'pad': -1})
  got = other.apply(decoder_params, np.where(texts == PAD, -1, texts)).pooled
  np.testing.assert_array_equal(got, tiny_decoder.apply(decoder_params, texts).pooled)


def test_a_text_of_pads_alone_gives_finite_numbers_and_gradients(tiny_decoder, decoder_params):
  nothing = np.full((2, 4), PAD, np.int32)
  loss = lambda params: tiny_decoder.apply(params, nothing).pooled.sum()
  value, grads = jax.jit(jax.value_and_grad(loss))(decoder_params)
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize('scan', [False, True])
def test_one_row_is_the_last_real_token(tiny_decoder, decoder_params, texts, decoder_sizes, scan):
  model = decoder(**decoder_sizes, scan=scan)
  params = stack_blocks(decoder_params, 3) if scan else decoder_params
  whole = tiny_decoder.apply(decoder_params, texts)
  part = model.apply(params, texts, rows=1)
  assert part.tokens.shape == (5, 1, 24)
  np.testing.assert_allclose(part.pooled, whole.pooled, atol=1e-5)
  np.testing.assert_array_equal(part.tokens[:, 0], part.pooled)


def test_one_row_saves_the_mlp_of_the_last_block(tiny_decoder, decoder_params):
  ids = jnp.zeros((5, 16), jnp.int32)

  def flops(rows):
    run = jax.jit(lambda p, ids: tiny_decoder.apply(p, ids, rows=rows).pooled)
    return run.lower(decoder_params, ids).compile().cost_analysis()['flops']

  saved = 5 * 15 * 3 * 2 * 24 * 20  # Three products [24, 20] for all tokens but one.
  assert flops(None) - flops(1) >= saved


def test_scan_equals_loop(tiny_decoder, decoder_params, texts, decoder_sizes):
  scanned = decoder(**decoder_sizes, scan=True)
  assert scanned.sites == tiny_decoder.sites
  got = scanned.apply(stack_blocks(decoder_params, 3), texts).tokens
  np.testing.assert_allclose(got, tiny_decoder.apply(decoder_params, texts).tokens, atol=1e-5)


def test_scan_starts_with_the_weights_of_the_loop(tiny_decoder, decoder_sizes):
  init = decoder(**decoder_sizes, scan=True).init
  got = unstack_blocks(init(jax.random.key(3)), 3)
  chex.assert_trees_all_equal(got, tiny_decoder.init(jax.random.key(3)))


def test_jit_equals_eager(tiny_decoder, decoder_params, texts):
  got = jax.jit(tiny_decoder.apply)(decoder_params, texts)
  want = tiny_decoder.apply(decoder_params, texts)
  np.testing.assert_allclose(got.tokens, want.tokens, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_remat_changes_no_gradient(tiny_decoder, decoder_params, texts, decoder_sizes, scan):
  policy = jax.checkpoint_policies.dots_saveable
  saved = decoder(**decoder_sizes, scan=scan, remat=policy)
  weights = stack_blocks(decoder_params, 3) if scan else decoder_params
  loss = lambda model: lambda p: jnp.square(model.apply(p, texts, rows=1).pooled).mean()
  got = jax.jit(jax.grad(loss(saved)))(weights)
  want = jax.jit(jax.grad(loss(tiny_decoder)))(decoder_params)
  got = unstack_blocks(got, 3) if scan else got
  chex.assert_trees_all_close(got, want, atol=2e-5)


def test_bfloat16_computes_near_float32_and_pools_in_float32(
  tiny_decoder, decoder_params, texts, decoder_sizes
):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), decoder_params)
  features = decoder(**decoder_sizes, dtype=jnp.bfloat16).apply(half, texts)
  assert features.tokens.dtype == jnp.bfloat16
  assert features.pooled.dtype == jnp.float32
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
  want = tiny_decoder.apply(wide, texts).pooled
  # bfloat16 has 8 bits of mantissa, and the features are of order 1.
  np.testing.assert_allclose(features.pooled, want, atol=0.1)


def test_ids_that_the_vocabulary_has_not_give_nan(tiny_decoder, decoder_params):
  ids = np.array([[1, 37, 2], [1, -2, 2], [1, 0, 2]], np.int32)
  pooled = jax.jit(tiny_decoder.apply)(decoder_params, ids).pooled
  assert np.isnan(pooled[:2]).all() and np.isfinite(pooled[2]).all()


@pytest.mark.parametrize(
  ('inputs', 'rows', 'error', 'message'),
  [
    (np.zeros((2, 17), np.int32), None, ValueError, r'\[B, up to 16\], got .* \[2, 17\]'),
    (np.zeros((2, 4, 4, 3), np.int32), None, ValueError, r'got an array of shape \[2, 4, 4, 3\]'),
    (np.zeros((2, 4), np.float32), None, TypeError, 'integer token ids, got float32'),
    (np.zeros((2, 4), np.int32), 3, ValueError, r'last real one \(rows=1\), got rows=3'),
  ],
)
def test_other_inputs_are_refused(tiny_decoder, decoder_params, inputs, rows, error, message):
  with pytest.raises(error, match=message):
    tiny_decoder.apply(decoder_params, inputs, rows=rows)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'heads': 5}, 'heads x an even number, got width 24 and 5 heads'),
    ({'heads': 8}, 'heads x an even number, got width 24 and 8 heads'),
    ({'kv_heads': 4}, 'heads must be a multiple of kv_heads, got 6 and 4'),
    ({'length': 0}, 'expected a whole number in 1..2147483647 for length, got 0'),
    ({'heads': 0}, 'for heads, got 0'),
    ({'hidden': 8.5}, 'hidden: expected an integer, got 8.5'),
    ({'depth': True}, 'depth: expected an integer, got True'),
    ({'depth': 10**9}, 'in 1..1000 for depth'),
    ({'eps': 0.0}, 'expected a positive number for eps, got 0.0'),
    ({'rope_theta': float('nan')}, 'rope_theta: expected a finite number, got nan'),
    ({'rope_low': 4.0}, 'rope_low must be below rope_high, got 4.0 and 4.0'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(decoder_sizes, change, message):
  with pytest.raises(ValueError, match=message):
    decoder(**{**decoder_sizes, **change})
