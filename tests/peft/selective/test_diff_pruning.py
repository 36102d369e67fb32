"""Diff pruning's gates, penalty and projection, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import after_updates

from pecft_jax.peft import diff_pruning
from pecft_jax.peft.selective.diff_pruning import logistic
from pecft_jax.peft.sites import site_key

PARAMS = {'a': jnp.ones((4, 5)), 'b': jnp.arange(6.0)}
LOW, HIGH = -0.4, 1.2
OPTIONS = dict(low=LOW, high=HIGH, share=0.2, strength=0.01)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def gate(logit):
  return np.clip(sigmoid(logit) * (HIGH - LOW) + LOW, 0, 1)


def started(grouped=True, spread=1.0):
  """A delta of random numbers."""
  peft, rng = diff_pruning(grouped=grouped, **OPTIONS), np.random.default_rng(0)
  delta = peft.init(jax.random.key(0), [], PARAMS)
  draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * spread, jnp.float32)
  change, alpha, group = (jax.tree.map(draw, each) for each in delta[:3])
  return peft, delta._replace(change=change, alpha=alpha, group=group)


def test_it_starts_with_open_gates_and_no_change():
  delta = diff_pruning().init(jax.random.key(0), [], PARAMS)
  assert {name: leaf.shape for name, leaf in delta.group.items()} == {'a': (), 'b': ()}
  assert all((leaf == 5).all() for leaf in jax.tree.leaves((delta.alpha, delta.group)))
  assert not any(leaf.any() for leaf in delta.change.values())
  assert diff_pruning(grouped=False).init(jax.random.key(0), [], PARAMS).group == {}


@pytest.mark.parametrize('grouped', [True, False])
def test_predictions_and_merging_use_the_gates_without_noise(grouped):
  peft, delta = started(grouped)
  new = peft.merge(delta, PARAMS)
  for name, old in PARAMS.items():
    z = gate(delta.alpha[name]) * (gate(delta.group[name]) if grouped else 1)
    want = np.float64(old) + z * np.float64(delta.change[name])
    np.testing.assert_allclose(new[name], want, atol=1e-6)


def test_values_and_gradients_with_noise_are_those_of_float64():
  peft, delta = started()
  key = jax.random.key(3)
  weight = {name: np.random.default_rng(1).normal(size=p.shape) for name, p in PARAMS.items()}

  def loss(delta):
    new = peft.replace(peft.with_dropout(delta, key), PARAMS)
    return sum((new[name] * weight[name]).sum() for name in PARAMS)

  value, found = jax.value_and_grad(loss, allow_int=True)(delta)
  total = 0.0
  for name, old in PARAMS.items():
    noise = lambda kind, leaf, name=name: np.float64(
      logistic(site_key(key, f'{kind} {name}'), leaf.shape)
    )
    alpha = np.float64(delta.alpha[name]) + noise('alpha', delta.alpha[name])
    group = np.float64(delta.group[name]) + noise('group', delta.group[name])
    z, z_group, change = gate(alpha), gate(group), np.float64(delta.change[name])
    total += ((np.float64(old) + z * z_group * change) * weight[name]).sum()
    slope = lambda x: (HIGH - LOW) * sigmoid(x) * (1 - sigmoid(x)) * ((gate(x) > 0) & (gate(x) < 1))
    wants = (
      (found.change, weight[name] * z * z_group),
      (found.alpha, weight[name] * change * z_group * slope(alpha)),
      (found.group, (weight[name] * change * z).sum() * slope(group)),
    )
    for got, want in wants:
      np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(value, total, rtol=1e-5)


@pytest.mark.parametrize('grouped', [True, False])
def test_the_penalty_is_the_expected_number_of_open_gates(grouped):
  peft, delta = started(grouped)
  is_open = lambda alpha: sigmoid(np.float64(alpha) - np.log(-LOW / HIGH))
  want = sum(
    (is_open(delta.alpha[name]) * (is_open(delta.group[name]) if grouped else 1)).sum()
    for name in PARAMS
  )
  np.testing.assert_allclose(peft.penalty(delta), 0.01 * want, rtol=1e-5)
  # And the number that are open is that, on average.
  ones = delta._replace(change=jax.tree.map(jnp.ones_like, delta.change))
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)

  @jax.jit
  @jax.vmap
  def count(key):
    new = peft.replace(peft.with_dropout(ones, key), zeros)
    return sum((leaf > 0).sum() for leaf in new.values())

  counts = np.asarray(count(jax.random.split(jax.random.key(0), 2000)))
  assert abs(counts.mean() - want) < 4 * counts.std() / np.sqrt(2000)


def test_in_the_second_part_the_largest_changes_alone_are_trained():
  peft, delta = started()
  assert int(peft.after(delta, None, jnp.float32(0.4)).fixed.value) == 0
  found = peft.after(delta, None, jnp.float32(0.5))
  z = {name: gate(delta.alpha[name]) * gate(delta.group[name]) for name in PARAMS}
  want = {name: z[name] * np.float64(delta.change[name]) for name in PARAMS}
  least = np.sort(np.concatenate([np.abs(w).reshape(-1) for w in want.values()]))[-round(0.2 * 26)]
  for name in PARAMS:
    stays = np.abs(want[name]) >= least
    np.testing.assert_array_equal(found.mask.value[name], stays)
    np.testing.assert_allclose(found.change[name], np.where(stays, want[name], 0), atol=1e-6)
  assert float(peft.penalty(found)) == 0
  # Moments of the optimizer move everything; what is not kept goes back, and gates stay as fixed.
  shaken = jax.tree.map(lambda leaf: leaf + 1, found[:3])
  later = peft.after(found._replace(**dict(zip(found._fields, shaken, strict=False))), None, 0.6)
  key = jax.random.key(0)
  new, noisy = (peft.replace(d, PARAMS) for d in (later, peft.with_dropout(later, key)))
  for name, old in PARAMS.items():
    change = np.where(found.mask.value[name], np.float64(found.change[name]) + 1, 0)
    np.testing.assert_allclose(new[name], np.float64(old) + change, atol=1e-6)
    np.testing.assert_array_equal(new[name], noisy[name])


def test_in_a_next_task_all_gates_are_open_again():
  peft, delta = started()
  found = peft.after(delta, None, jnp.float32(0.5))
  again = peft.after(found, None, jnp.float32(0.0))
  assert int(again.fixed.value) == 0
  want, got = peft.merge(found, PARAMS), peft.merge(again, PARAMS)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_a_task_is_trained_in_both_parts():
  deltas = after_updates(diff_pruning('attn/q', share=0.1, strength=0.1), 6)
  assert [int(delta.fixed.value) for delta in deltas] == [0, 0, 0, 1, 1, 1]
  changed = [sum(int((c != 0).sum()) for c in delta.change.values()) for delta in deltas]
  assert changed[2] == 72 and changed[3:] == [round(0.1 * 72)] * 3
  # The penalty closes gates while they are learned.
  alphas = [float(delta.alpha['block_0/attn/q/kernel'].mean()) for delta in deltas]
  assert 5 > alphas[0] > alphas[2] and alphas[3:] == [5.0] * 3


def test_numbers_out_of_their_range_are_refused():
  with pytest.raises(ValueError, match='expected low < 0 and high > 1'):
    diff_pruning(low=0.0)
  with pytest.raises(ValueError, match='strength must be'):
    diff_pruning(strength=-1.0)
  with pytest.raises(ValueError, match=r'a share in \(0, 1\]'):
    diff_pruning(share=0.0)
