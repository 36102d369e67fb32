"""LoRA-GA against the decomposition of gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_passes import by_hand, passed

from pecft_jax.peft import calibrated, lora_ga, weight_sites

SITE = 'block_0/attn/q'
PEFT = lora_ga('attn/q$', rank=2, alpha=3.0, gamma=4.0)


@pytest.fixture(scope='module')
def found():
  return passed(PEFT)


def test_the_statistics_are_the_sum_over_valid_examples(found):
  want = sum(kernel.sum(0) for kernel, _ in by_hand())
  np.testing.assert_allclose(found[1][SITE], want, rtol=1e-4, atol=1e-6 * np.abs(want).max())


def test_factors_are_the_first_and_the_next_directions_of_the_gradient(found):
  u, _, v = np.linalg.svd(sum(kernel.sum(0) for kernel, _ in by_hand()))
  size = 8**0.25 / 2
  leaf = found[2][SITE]
  np.testing.assert_allclose(np.abs(u[:, :2].T @ leaf.a), size * np.eye(2), atol=1e-3)
  np.testing.assert_allclose(np.abs(leaf.b @ v[2:4].T), size * np.eye(2), atol=1e-3)
  np.testing.assert_array_equal(leaf.start.value.a, leaf.a)
  np.testing.assert_array_equal(leaf.start.value.b, leaf.b)


def test_directions_that_are_of_rounding_alone_are_left_out():
  params = {'fc': {'w': jnp.ones((6, 9))}}
  peft = lora_ga('fc', rank=2)
  delta = peft.init(jax.random.key(0), weight_sites(params), params)
  g = jnp.outer(jnp.arange(6.0) - 4, jnp.arange(9.0)).at[0, 0].set(7.0)  # Of rank 2.
  leaf = peft.calibrate.finish(delta, {'fc': g})['fc']
  assert leaf.a.any(0).all() and not leaf.b.any()
  assert (leaf.a.max(0) == jnp.abs(leaf.a).max(0)).all()


def test_the_first_step_is_the_best_of_twice_the_rank(found):
  """What both factors change A B by at first is G cut to 2 r singular values, times a factor."""
  g = np.float64(found[1][SITE])
  a, b = (np.float64(getattr(found[2][SITE], name)) for name in 'ab')
  # A step of size 1 on A B changes A by -G B^T and B by -A^T G.
  first = (g @ b.T) @ b + a @ (a.T @ g)
  u, s, v = np.linalg.svd(g)
  best = (u[:, :4] * s[:4]) @ v[:4]
  np.testing.assert_allclose(first / (8**0.5 / 4), best, atol=1e-3 * s[0])


def test_a_pass_of_ones_own_needs_a_loss(tiny):
  delta = PEFT.init(jax.random.key(0), tiny.model.sites, tiny.params)
  run = lambda **how: calibrated(tiny.model, PEFT, delta, tiny.params, [tiny.images], **how)
  with pytest.raises(ValueError, match='needs gradients: give loss='):
    run()
  after = run(loss=lambda params, x: jnp.square(tiny.model.apply(params, x).pooled - 1).mean())
  plain = tiny.model.apply(tiny.params, tiny.images).pooled
  got = tiny.model.apply(tiny.params, tiny.images, after, peft=PEFT).pooled
  np.testing.assert_allclose(got, plain, atol=1e-5)
  assert after[SITE].b.any()


def test_ranks_that_leave_no_room_for_both_factors_are_refused():
  params = {'fc': {'w': jnp.ones((5, 9))}}
  with pytest.raises(ValueError, match=r'fc: rank 3 is above half of .*\[5, 9\]'):
    lora_ga('fc', rank=3).init(jax.random.key(0), weight_sites(params), params)
