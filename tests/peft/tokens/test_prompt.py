"""Prompts: where tokens go in and come out, and who sees them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.backbones import architecture
from pecft_jax.peft import at_layers, prompt, vpt_deep, vpt_shallow
from pecft_jax.peft.tokens.prompt import PromptDelta
from pecft_jax.typing import Site

X = jnp.arange(2 * 5 * 3.0).reshape(2, 5, 3)
LEAF = PromptDelta(-jnp.ones((4, 3)))


def through(next_fn, lead, mask=None, leaf=LEAF):
  return prompt().intercept({'encoder': leaf}, Site('tokens', 'encoder', lead), next_fn, X, mask)


@pytest.mark.parametrize('lead', [0, 1, 2])
def test_tokens_stand_behind_the_leading_ones_and_are_removed(lead):
  def call(x, mask):
    assert mask is None and x.shape == (2, 9, 3)
    np.testing.assert_array_equal(x[:, lead : lead + 4], -np.ones((2, 4, 3)))
    return 2 * x

  np.testing.assert_array_equal(through(call, lead), 2 * X)


def test_leading_rows_alone_come_through():
  np.testing.assert_array_equal(through(lambda x, mask: x[:, :1], 1), X[:, :1])


def test_each_example_may_have_its_own():
  tokens = jnp.stack([jnp.ones((4, 3)), jnp.zeros((4, 3))])
  seen = []
  through(lambda x, mask: seen.append(x) or x, 1, leaf=PromptDelta(tokens))
  np.testing.assert_array_equal(seen[0][:, 1:5], tokens)


def test_a_causal_model_stays_causal():
  seen = []
  causal = jnp.tril(jnp.ones((5, 5), bool))
  through(lambda x, mask: seen.append(mask) or x, 0, causal)
  expected = np.zeros((9, 9), bool)
  expected[:, :4] = True  # All see the prompt, which sees nothing but itself.
  expected[4:, 4:] = causal
  np.testing.assert_array_equal(seen[0], expected)


def test_prompts_see_what_the_class_token_sees():
  seen = []
  mask = jnp.eye(5, dtype=bool).at[0].set(True).at[0, 3].set(False)
  through(lambda x, mask: seen.append(mask) or x, 1, mask)
  out = np.asarray(seen[0])
  assert out[:, 1:5].all()
  for row in out[1:5]:
    np.testing.assert_array_equal(np.delete(row, np.s_[1:5]), mask[0])
  np.testing.assert_array_equal(np.delete(np.delete(out, np.s_[1:5], 0), np.s_[1:5], 1), mask)


def test_prompts_for_each_example_equal_vmap(tiny):
  peft = vpt_deep(4)
  one = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  each = shaken(jax.tree.map(lambda leaf: jnp.stack([leaf] * 7), one), 1, 0.5)

  def apply(delta, images):
    return tiny.model.apply(tiny.params, images, delta, peft=peft).pooled

  one_by_one = jax.jit(jax.vmap(apply))(each, tiny.images[:, None])[:, 0]
  np.testing.assert_allclose(jax.jit(apply)(each, tiny.images), one_by_one, atol=2e-5)


def test_deep_prompts_in_the_first_block_alone_are_not_shallow_ones(tiny):
  deep = at_layers(vpt_deep(4), [0])
  delta = shaken(deep.init(jax.random.key(0), tiny.model.sites, tiny.params), 1)
  run = lambda peft, delta: tiny.model.apply(tiny.params, tiny.images, delta, peft=peft).pooled
  # Shallow prompts live on through the later blocks, deep ones are dropped behind theirs.
  assert np.abs(run(deep, delta) - run(vpt_shallow(4), {'encoder': delta['block_0']})).max() > 1e-3


def test_vpt_starts_uniform_within_the_xavier_bound(tiny):
  delta = vpt_deep(50).init(jax.random.key(0), tiny.model.sites, tiny.params)
  bound = np.sqrt(6 / 48)
  for leaf in jax.tree.leaves(delta):
    assert leaf.shape == (50, 24) and 0.9 * bound < np.abs(leaf).max() <= bound


def test_a_length_below_one_is_refused():
  with pytest.raises(ValueError, match='length of at least 1, got 0'):
    prompt(length=0)


def test_a_stack_that_the_backbone_does_not_have_is_named():
  backbone = architecture('vit_glyphs16', depth=1)
  with pytest.raises(ValueError, match=r"no blocks in a stack 'text'; stacks: \[''\]"):
    vpt_deep(2, stack='text').init(jax.random.key(0), backbone.sites, None)
