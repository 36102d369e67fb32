import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.schedules import constant, cosine, milestones, quarter_cosine, warmup


def test_schedules_over_progress():
  at = lambda schedule: [round(float(schedule(jnp.asarray(p))), 4) for p in (0, 0.1, 0.55, 1)]
  assert at(constant) == [1, 1, 1, 1]
  assert at(cosine) == [1.0, 0.9755, 0.4218, 0.0]
  assert at(warmup(0.1, constant)) == [0, 1, 1, 1]
  assert at(warmup(0.2, constant)) == [0, 0.5, 1, 1]
  assert at(warmup(0.1, cosine)) == [0.0, 1.0, 0.5, 0.0]


def test_milestones_are_those_of_torch():
  torch = pytest.importorskip('torch')
  tx = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
  theirs = torch.optim.lr_scheduler.MultiStepLR(tx, [35, 45], 0.2)
  ours, epochs, batches = milestones((35 / 50, 45 / 50), 0.2), 50, 3
  for step in range(epochs * batches):
    rate = ours(jnp.asarray(step / jnp.float32(epochs * batches)))
    np.testing.assert_allclose(rate, tx.param_groups[0]['lr'], rtol=1e-6)
    if step % batches == batches - 1:
      tx.step()
      theirs.step()
  with pytest.raises(ValueError, match=r'points in \(0, 1\), got \[1.0\]'):
    milestones((1.0,))


def test_a_quarter_of_a_cosine_ends_where_the_authors_does():
  # base * cos(99 pi e / (200 (K - 1))) in epochs e of K.
  epochs = np.arange(20)
  theirs = np.cos(99 * np.pi * epochs / (200 * 19))
  np.testing.assert_allclose(quarter_cosine(jnp.asarray(epochs / 19)), theirs, atol=1e-6)


def test_a_warm_up_of_the_whole_task_is_refused():
  with pytest.raises(ValueError, match=r'share must be in \(0, 1\), got 1'):
    warmup(1.0, cosine)
