"""Merge rules on trees whose axes all differ, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.continual.merging.rules import (
  RULES,
  average,
  dare,
  fisher_weighted,
  magmax,
  moving_average,
  task_arithmetic,
  ties,
)

T = 3


def tree(seed):
  rng = np.random.default_rng(seed)
  return {'a': {'w': rng.normal(size=(2, 3))}, 'b': rng.normal(size=(5,)), 'c': rng.normal()}


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


TAUS = [tree(s) for s in range(T)]
FISHERS = [jax.tree.map(np.square, tree(10 + s)) for s in range(T)]
FLAT = np.stack([flat(t) for t in TAUS])


def merge(rule, taus=TAUS, fishers=FISHERS, room=T):
  like = jax.tree.map(jnp.float32, taus[0])
  state = rule.init(like, room, jax.random.key(7))
  add = jax.jit(rule.add)
  for t, (tau, fisher) in enumerate(zip(taus, fishers, strict=False)):
    state = add(state, jax.tree.map(jnp.float32, tau), fisher, jnp.int32(t))
  return flat(jax.jit(rule.read)(state))


def test_average_is_the_mean():
  np.testing.assert_allclose(merge(average()), FLAT.mean(0), rtol=1e-5)


def test_moving_average_starts_at_the_first_task():
  want = FLAT[0]
  for row in FLAT[1:]:
    want = 0.7 * want + 0.3 * row
  np.testing.assert_allclose(merge(moving_average(0.7)), want, rtol=1e-5, atol=1e-6)


def test_task_arithmetic_is_the_sum():
  np.testing.assert_allclose(merge(task_arithmetic()), FLAT.sum(0), rtol=1e-5, atol=1e-6)


def numpy_ties(rows, density):
  kept = max(int(density * rows.shape[1]), 1)
  trimmed = []
  for row in rows:
    largest = np.argsort(-np.abs(row))[:kept]
    trimmed.append(np.where(np.isin(np.arange(len(row)), largest), row, 0))
  trimmed = np.stack(trimmed)
  signs = np.sign(trimmed.sum(0))
  signs[signs == 0] = np.sign(signs.sum())
  agree = np.where(signs > 0, trimmed > 0, trimmed < 0)
  return (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)


@pytest.mark.parametrize('density', [0.01, 0.3, 0.7, 1.0])
def test_ties_trims_elects_and_averages(density):
  np.testing.assert_allclose(merge(ties(density)), numpy_ties(FLAT, density), rtol=1e-5)


def test_tasks_to_come_do_not_count():
  np.testing.assert_allclose(merge(ties(0.5), room=9), numpy_ties(FLAT, 0.5), rtol=1e-5)


def test_magmax_takes_the_largest_magnitude():
  want = FLAT[np.abs(FLAT).argmax(0), np.arange(FLAT.shape[1])]
  np.testing.assert_allclose(merge(magmax()), want, rtol=1e-6)


@pytest.mark.parametrize('most', [None, 0.3])
def test_fisher_weighted_is_cofimas_running_mean(most):
  weights = np.stack([flat(f) for f in FISHERS])
  weights = weights if most is None else np.minimum(weights, most)
  want = FLAT[0]
  for t in (1, 2):
    old, new = 0.6 * weights[t - 1], 0.4 * weights[t]
    want = (old * want + new * FLAT[t]) / (old + new)
  np.testing.assert_allclose(merge(fisher_weighted(0.4, most)), want, rtol=1e-4)


def test_without_fisher_information_the_share_alone_counts():
  zero = [jax.tree.map(np.zeros_like, f) for f in FISHERS]
  found = merge(fisher_weighted(0.4), fishers=zero)
  want = 0.6 * (0.6 * FLAT[0] + 0.4 * FLAT[1]) + 0.4 * FLAT[2]
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)


def test_dare_drops_each_task_by_itself_and_keeps_the_expectation():
  taus = [{'w': np.ones((50, 40))}] * 2
  found = merge(dare(0.75, average()), taus, [None] * 2)
  # Of two draws of 0 or 4: a mean of 0, 2 or 4, by binomial shares.
  values, counts = np.unique(found, return_counts=True)
  assert values.tolist() == [0, 2, 4]
  np.testing.assert_allclose(counts / 2000, [0.5625, 0.375, 0.0625], atol=0.04)
  assert (merge(dare(0.0, magmax())) == merge(magmax())).all()


@pytest.mark.parametrize('name', RULES)
def test_one_task_alone_is_itself(name):
  rule = (
    RULES[name]() if name not in ('ties', 'dare') else {'ties': ties(1.0), 'dare': dare(0.0)}[name]
  )
  np.testing.assert_allclose(merge(rule, TAUS[:1]), FLAT[0], rtol=1e-6)


@pytest.mark.parametrize('make', [lambda: ties(0.0), lambda: dare(1.0), lambda: moving_average(1.0),
                                  lambda: fisher_weighted(0.0)])  # fmt: skip
def test_values_out_of_range_are_refused(make):
  with pytest.raises(ValueError, match='expected'):
    make()
