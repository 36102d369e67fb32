"""AdaLoRA's importance, budget and regulariser, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_vit import shaken

from pecft_jax.peft import adalora
from pecft_jax.peft.halves import combine, split_kept
from pecft_jax.peft.lowrank.adalora import far_from_one, moved, triplet_scores

PATHS = tuple(f'block_{i}/attn/q' for i in range(2))


def started(tiny, **options):
  peft = adalora('block_[01]/attn/q$', rank=4, target=2, **options)
  delta = peft.init(jax.random.key(0), tiny.model.sites, tiny.params)
  active, kept = split_kept(delta)
  return peft, combine(shaken(active, 1), kept)


def grads_of(delta, seed):
  return shaken(jax.tree.map(jnp.zeros_like, split_kept(delta)[0]), seed)


def test_importance_and_scores_follow_the_moving_averages(tiny):
  peft, delta = started(tiny)
  mean, change = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
  leaf = delta[PATHS[0]]
  for seed in range(3):
    grads = grads_of(delta, seed)[PATHS[0]]
    here = [np.abs(np.float64(w) * np.float64(g)) for w, g in zip(leaf[:3], grads[:3], strict=True)]
    mean = [0.85 * m + 0.15 * h for m, h in zip(mean, here, strict=True)]
    change = [0.85 * c + 0.15 * np.abs(h - m) for c, h, m in zip(change, here, mean, strict=True)]
    known = moved(leaf, grads, 0.85)
    leaf = leaf._replace(importance=leaf.importance._replace(value=known))
  p, l, q = (m * c for m, c in zip(mean, change, strict=True))  # noqa: E741
  np.testing.assert_allclose(triplet_scores(known), p.mean(0) + l + q.mean(1), rtol=1e-4)


@pytest.mark.parametrize(
  ('progress', 'budget'), [(0.0, 8), (0.1, 8), (0.4, 4 + 4 * 0.5**3), (0.7, 4), (1.0, 4)]
)
def test_the_budget_falls_along_a_cubic_and_the_largest_scores_stay(tiny, progress, budget):
  peft, delta = started(tiny)
  after = peft.after(delta, grads_of(delta, 2), jnp.float32(progress))
  scores = np.stack([triplet_scores(after[path].importance.value) for path in PATHS])
  kept = np.stack([np.asarray(after[path].l) != 0 for path in PATHS])
  if progress < 0.7:  # Then the choice stands still: it was all of them.
    assert kept.sum() == round(budget)
    assert scores[kept].min() >= scores[~kept].max(initial=-1)
  else:
    assert kept.all()


def test_in_the_last_part_the_choice_stands_still(tiny):
  peft, delta = started(tiny)
  late = peft.after(delta, grads_of(delta, 2), jnp.float32(0.69))
  grown = {path: leaf._replace(l=leaf.l + 1) for path, leaf in late.items()}
  again = peft.after(grown, grads_of(delta, 7), jnp.float32(0.9))
  for path in PATHS:
    np.testing.assert_array_equal(again[path].l != 0, late[path].mask.value)


def test_the_penalty_is_the_mean_distance_from_orthonormal_factors(tiny):
  peft, delta = started(tiny, orthogonality=0.3)
  norms = []
  for leaf in delta.values():
    p, q = np.float64(leaf.p), np.float64(leaf.q)
    norms += [np.linalg.norm(p.T @ p - np.eye(4)), np.linalg.norm(q @ q.T - np.eye(4))]
  np.testing.assert_allclose(peft.penalty(delta), 0.3 * np.mean(norms), rtol=1e-5)
  assert np.isfinite(jax.grad(far_from_one)(jnp.eye(4, 6))).all()


def test_merged_weights_match_sites(tiny):
  peft, delta = started(tiny)
  apply = lambda params, **how: tiny.model.apply(params, tiny.images, **how).pooled
  merged = peft.merge(delta, tiny.params)
  want = apply(tiny.params, delta=delta, peft=peft)
  np.testing.assert_allclose(apply(merged), want, atol=1e-4)


def test_ranks_and_shares_out_of_order_are_refused():
  with pytest.raises(ValueError, match='1 <= target <= rank'):
    adalora(rank=2, target=3)
  with pytest.raises(ValueError, match=r'warm \+ hold below 1'):
    adalora(warm=0.6, hold=0.4)
