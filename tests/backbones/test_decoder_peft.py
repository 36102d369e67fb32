"""Every registered transform on a decoder."""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import kind_of_peft, one_of_each

from pecft_jax.about import about_of, tinies
from pecft_jax.backbones import decoder, stack_blocks
from pecft_jax.paths import map_named, named_leaves
from pecft_jax.peft import PEFTS, combine, merge_error, merged, prompt, split_kept
from pecft_jax.peft.tokens.prompt import PromptDelta
from pecft_jax.typing import PeftTransform

TINIES = tinies(PEFTS)
ABOUT = {name: about_of(PEFTS[name.partition(':')[0]]) for name in TINIES}
# A decoder has no biases.
NAMES = sorted(name for name in TINIES if 'biases' not in ABOUT[name].needs)
REFUSED = sorted(set(TINIES) - set(NAMES))
MERGEABLE = [name for name in NAMES if TINIES[name]().merge is not None]

KINDS = one_of_each(NAMES, kind_of_peft)

every_peft = pytest.mark.parametrize('name', NAMES)
every_kind = pytest.mark.parametrize('name', KINDS)


class Case(NamedTuple):
  peft: PeftTransform
  start: Any  # The delta at init.
  delta: Any  # The same with noise.
  features: Any  # Of the loop, not jitted, under `delta`.


@pytest.fixture(scope='module')
def cases(tiny_decoder, decoder_params, texts):
  @functools.cache
  def case(name):
    peft = TINIES[name]()
    start = peft.init(jax.random.key(3), tiny_decoder.sites, decoder_params)
    delta = map_named(shaken, start)
    return Case(peft, start, delta, tiny_decoder.apply(decoder_params, texts, delta, peft=peft))

  return case


@pytest.fixture(scope='module')
def frozen_tokens(tiny_decoder, decoder_params, texts):
  """What the model computes without a delta."""
  return tiny_decoder.apply(decoder_params, texts).tokens


@pytest.fixture
def case(cases, name):
  return cases(name)


def shaken(name, leaf):
  noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
  return jnp.asarray(leaf + 0.1 * noise, leaf.dtype)


def close(got, want):
  np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)


@every_peft
def test_starts_as_the_frozen_model_where_promised(
  tiny_decoder, decoder_params, texts, case, name, frozen_tokens
):
  frozen = frozen_tokens
  start = tiny_decoder.apply(decoder_params, texts, case.start, peft=case.peft).tokens
  if ABOUT[name].identity:
    close(start, frozen)
  else:
    assert np.abs(start - frozen).max() > 1e-3
  changed = np.abs(case.features.pooled - frozen[:, -1]).max() > 1e-3
  assert changed or not jax.tree.leaves(case.start)  # A linear probe trains nothing here.
  assert case.features.tokens.shape == frozen.shape


@every_kind
def test_jitted_scan_equals_eager_loop(case, decoder_sizes, decoder_params, texts):
  scanned = decoder(**decoder_sizes, scan=True)
  run = jax.jit(functools.partial(scanned.apply, peft=case.peft))
  close(run(stack_blocks(decoder_params, 3), texts, case.delta).tokens, case.features.tokens)


@every_peft
def test_the_last_real_token_alone_equals_all_tokens(case, tiny_decoder, decoder_params, texts):
  features = tiny_decoder.apply(decoder_params, texts, case.delta, peft=case.peft, rows=1)
  assert features.tokens.shape == (5, 1, 24)
  close(features.pooled, case.features.pooled)


@pytest.mark.parametrize('name', ['parallel', 'prefix', 'vpt_deep', 'vpt_shallow'])
def test_the_last_real_token_alone_equals_all_tokens_of_a_scan(
  case, decoder_sizes, decoder_params, texts
):
  scanned = decoder(**decoder_sizes, scan=True)
  params = stack_blocks(decoder_params, 3)
  close(
    scanned.apply(params, texts, case.delta, peft=case.peft, rows=1).pooled, case.features.pooled
  )


@every_peft
def test_padding_still_makes_no_difference(case, name, tiny_decoder, decoder_params, texts):
  """The pads go from the front to the end of one text, and, for one of a kind, from another."""
  moved = np.concatenate([texts[2, 3:], texts[2, :3]])
  moved = tiny_decoder.apply(decoder_params, np.tile(moved, (5, 1)), case.delta, peft=case.peft)
  close(moved.tokens[2, :8], case.features.tokens[2, 3:])
  if name not in KINDS:
    return
  alone = jax.jit(functools.partial(tiny_decoder.apply, peft=case.peft))
  alone = alone(decoder_params, texts[1:2, :7], case.delta)
  close(alone.tokens[0], case.features.tokens[1, :7])


@every_peft
def test_stays_causal(case, tiny_decoder, decoder_params, texts):
  changed = texts.copy()
  changed[0, 6] = (texts[0, 6] + 1) % 36
  after = tiny_decoder.apply(decoder_params, changed, case.delta, peft=case.peft).tokens
  np.testing.assert_array_equal(after[0, :6], case.features.tokens[0, :6])
  assert np.abs(after[0, 6:] - case.features.tokens[0, 6:]).max(-1).min() > 1e-4


@every_peft
def test_gradients_reach_every_leaf_of_the_delta(name, decoder_sizes, decoder_params, texts):
  peft, shallow = TINIES[name](), decoder(**{**decoder_sizes, 'depth': 1})
  params = {key: decoder_params[key] for key in ('embed', 'block_0', 'norm')}
  delta = map_named(shaken, peft.init(jax.random.key(3), shallow.sites, params))
  target = np.random.default_rng(5).normal(size=(5, 24))

  active, kept = split_kept(delta)

  @jax.jit
  @jax.grad
  def gradients(active, params, texts):
    features = shallow.apply(params, texts, combine(active, kept), peft=peft, rows=1)
    return jnp.mean((features.pooled - target) ** 2)

  for leaf, grad in named_leaves(gradients(active, params, texts)):
    assert np.isfinite(grad).all(), leaf
    assert np.abs(grad).max() > 1e-7, leaf


@pytest.mark.parametrize('name', MERGEABLE)
def test_merged_weights_equal_the_sites(case, tiny_decoder, decoder_params, texts):
  if any(leaf.endswith('/shift') for leaf, _ in named_leaves(case.start)):
    with pytest.raises(ValueError, match='has no bias to write to'):
      merged(case.peft, case.delta, decoder_params)
    return
  error = merge_error(tiny_decoder.apply, case.peft, case.delta, decoder_params, texts)
  assert error < 5e-5


@every_peft
def test_init_works_on_shapes_alone(case, tiny_decoder, decoder_params):
  init = lambda key, params: case.peft.init(key, tiny_decoder.sites, params)
  abstract = jax.eval_shape(init, jax.random.key(0), decoder_params)
  shapes = lambda tree: [(n, leaf.shape, leaf.dtype) for n, leaf in named_leaves(tree)]
  assert shapes(abstract) == shapes(case.start)


@every_peft
def test_computes_in_the_type_of_the_backbone(case, decoder_sizes, decoder_params, texts):
  half = decoder(**decoder_sizes, scan=True, dtype=jnp.bfloat16)
  run = functools.partial(half.apply, peft=case.peft)
  stored = jax.tree.map(lambda a: a.astype(jnp.bfloat16), stack_blocks(decoder_params, 3))
  for params in (stack_blocks(decoder_params, 3), stored):
    assert jax.eval_shape(run, params, texts, case.delta).tokens.dtype == jnp.bfloat16
  active, _ = split_kept(case.start)
  assert {leaf.dtype for leaf in jax.tree.leaves(active)} <= {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize('name', REFUSED)
def test_what_needs_biases_is_refused_at_init(name, tiny_decoder, decoder_params):
  with pytest.raises(
    ValueError, match=r"no (leaf|'linear' site) matches '.*'; (leaves|sites): \['"
  ):
    TINIES[name]().init(jax.random.key(0), tiny_decoder.sites, decoder_params)


def test_a_prompt_of_embeddings_is_text(tiny_decoder, decoder_params, texts):
  """Prompts hold the positions before the text, are causal, and padding does not part them."""
  words = np.array([5, 17, 29, 2], np.int32)
  delta = {'encoder': PromptDelta(decoder_params['embed']['table'][words])}
  peft = prompt(length=4)
  got = tiny_decoder.apply(decoder_params, texts, delta, peft=peft)
  kept = [slice(0, 11), slice(0, 7), slice(3, 11), slice(2, 9), slice(0, 1)]
  written = np.full((5, 15), 36, np.int32)
  for text, new, real in zip(texts, written, kept, strict=True):
    together = np.concatenate([words, text[real]])
    new[: len(together)] = together
  want = tiny_decoder.apply(decoder_params, written)
  close(got.pooled, want.pooled)
  for row, real in enumerate(kept):
    count = real.stop - real.start
    close(got.tokens[row, real], want.tokens[row, 4 : 4 + count])


def test_prompts_in_every_block_stand_before_the_text_too(tiny_decoder, decoder_params, texts):
  """What a block makes of text behind its inputs at other texts' places, given as prompts."""
  outer = texts[:1]
  states = []

  def record(delta, site, next_fn, *args):
    if site.kind == 'tokens' and site.path.startswith('block'):
      states.append(args[0])
    return next_fn(*args)

  want = tiny_decoder.apply(decoder_params, outer, {}, peft=PeftTransform(lambda *_: {}, record))
  delta = {f'block_{i}': PromptDelta(state[0, :4]) for i, state in enumerate(states)}
  peft = PEFTS['vpt_deep'](4)
  got = tiny_decoder.apply(decoder_params, outer[:, 4:], delta, peft=peft)
  close(got.tokens, want.tokens[:, 4:])
