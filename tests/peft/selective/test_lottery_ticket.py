"""Lottery tickets: both parts of a task, and the next task, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import after_updates

from pecft_jax.peft import lottery_ticket

PARAMS = {'a': jnp.ones((4, 5)), 'b': {'c': jnp.arange(6.0)}}
PEFT = lottery_ticket(share=0.2, search=0.5)
COUNT = round(0.2 * 26)


def flat(tree):
  return np.concatenate([np.asarray(tree[name], np.float64).reshape(-1) for name in ('a', 'b/c')])


def moved(delta, seed):
  """A delta after an update of all entries, as an optimizer with moments makes it."""
  rng = np.random.default_rng(seed)
  change = jax.tree.map(lambda c: c + jnp.float32(rng.normal(size=c.shape)), delta.change)
  return delta._replace(change=change)


def after(delta, progress):
  return PEFT.after(delta, None, jnp.float32(progress))


@pytest.fixture(scope='module')
def task():
  """`(trained in the first part, found, trained in the second part)`"""
  delta = PEFT.init(jax.random.key(0), [], PARAMS)
  first = moved(after(moved(delta, 1), 0.4), 2)
  found = after(first, 0.5)
  return first, found, after(moved(found, 3), 0.6)


def test_in_the_first_part_all_entries_are_trained(task):
  first = flat(task[0].change)
  rng1, rng2 = (np.random.default_rng(seed) for seed in (1, 2))
  want = [rng1.normal(size=s) + rng2.normal(size=s) for s in ((4, 5), (6,))]
  np.testing.assert_allclose(first, np.concatenate([w.reshape(-1) for w in want]), atol=1e-6)


def test_the_entries_that_changed_most_are_kept_and_all_go_back(task):
  first, found, _ = task
  far = np.abs(flat(first.change))
  want = np.zeros(26, bool)
  want[np.argsort(-far)[:COUNT]] = True
  np.testing.assert_array_equal(flat(found.mask.value) > 0, want)
  assert not flat(found.change).any()


def test_in_the_second_part_these_alone_are_trained(task):
  _, found, second = task
  mask = flat(found.mask.value) > 0
  np.testing.assert_array_equal(flat(second.change) != 0, mask)
  rng = np.random.default_rng(3)
  steps = np.concatenate([rng.normal(size=20), rng.normal(size=6)])
  np.testing.assert_allclose(flat(second.change)[mask], steps[mask], atol=1e-6)
  new = PEFT.merge(second, PARAMS)
  np.testing.assert_allclose(new['a'], 1 + np.float64(second.change['a']), atol=1e-6)
  np.testing.assert_allclose(
    new['b']['c'], np.arange(6) + np.float64(second.change['b/c']), atol=1e-6
  )


def test_a_next_task_starts_from_the_last_change(task):
  last = flat(task[2].change)
  first = after(moved(task[2], 4), 0.0)
  assert int(first.found.value) == 0
  np.testing.assert_array_equal(flat(first.start.value), last)
  found = after(first, 0.5)
  np.testing.assert_array_equal(flat(found.change), last)
  far = np.abs(flat(first.change) - last)
  mask = flat(found.mask.value) > 0
  assert mask.sum() == COUNT and far[mask].min() >= far[~mask].max()
  second = after(moved(found, 5), 0.9)
  np.testing.assert_array_equal(flat(second.change)[~mask], last[~mask])
  assert (flat(second.change)[mask] != last[mask]).all()


def test_a_task_is_trained_in_both_parts():
  deltas = after_updates(lottery_ticket('attn/q', share=0.1), 6)
  assert [int(delta.found.value) for delta in deltas] == [0, 0, 0, 1, 1, 1]
  changed = [sum(int((c != 0).sum()) for c in delta.change.values()) for delta in deltas]
  assert changed[2] == 72 and changed[3] == 0
  assert changed[4:] == [round(0.1 * 72)] * 2


def test_weights_of_half_precision_have_float32_changes():
  half = {'a': jnp.ones((2, 2), jnp.bfloat16)}
  delta = PEFT.init(jax.random.key(0), [], half)
  assert delta.change['a'].dtype == PEFT.replace(delta, half)['a'].dtype == jnp.float32


def test_what_chooses_nothing_is_refused():
  with pytest.raises(ValueError, match=r'a share in \(0, 1\]'):
    lottery_ticket(share=1.5)
  with pytest.raises(ValueError, match=r'search must be in \(0, 1\)'):
    lottery_ticket(search=1.0)
  with pytest.raises(ValueError, match="no leaf matches 'nowhere'"):
    lottery_ticket('nowhere').init(jax.random.key(0), [], PARAMS)
