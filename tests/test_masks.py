"""A rule says the same as the array [B, T, T] that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.masks import Mask, of_first_queries, with_keys_ahead, with_tokens

LENGTHS = jnp.array([2, 5])
RULES = [Mask(), Mask(LENGTHS), Mask(causal=True), Mask(LENGTHS, causal=True)]


def array(mask, queries=5, keys=5):
  """[2, queries, keys]"""
  found = mask.array(queries, keys)
  found = True if found is None else found
  return np.broadcast_to(found, (2, queries, keys))


@pytest.mark.parametrize('rule', RULES)
def test_keys_ahead_are_seen_by_all(rule):
  got = array(with_keys_ahead(rule, 3), keys=8)
  np.testing.assert_array_equal(got, with_keys_ahead(jnp.asarray(array(rule)), 3))
  assert got[..., :3].all()


@pytest.mark.parametrize('rule', RULES[:2])
@pytest.mark.parametrize('lead', [1, 2])
def test_inserted_tokens_see_what_the_token_before_them_does(rule, lead):
  got = array(with_tokens(rule, lead, 3), 8, 8)
  np.testing.assert_array_equal(got, with_tokens(jnp.asarray(array(rule)), lead, 3))


@pytest.mark.parametrize('rule', RULES[2:])
def test_inserted_tokens_of_a_causal_rule_are_causal(rule):
  got = array(with_tokens(rule, 0, 3), 8, 8)
  whole = with_tokens(jnp.asarray(array(rule)), 0, 3)
  np.testing.assert_array_equal(got[:, 3:], whole[:, 3:])
  np.testing.assert_array_equal(got[:, :3], np.broadcast_to(np.tri(3, 8, dtype=bool), (2, 3, 8)))


@pytest.mark.parametrize('rule', RULES)
def test_leading_queries_keep_their_rows(rule):
  np.testing.assert_array_equal(array(of_first_queries(rule, 2), 2), array(rule)[:, :2])
  np.testing.assert_array_equal(of_first_queries(array(rule), 2), array(rule)[:, :2])


def test_no_mask_stays_none():
  assert with_keys_ahead(None, 3) is with_tokens(None, 1, 3) is of_first_queries(None, 1) is None


def test_a_rule_is_a_pytree_whose_flags_are_static():
  rule = Mask(LENGTHS, causal=True, ahead=2)
  assert len(jax.tree.leaves(rule)) == 1
  shown = jax.jit(lambda mask: mask.array(5, 7) if mask.causal else 0)(rule)
  np.testing.assert_array_equal(shown, rule.array(5, 7))
