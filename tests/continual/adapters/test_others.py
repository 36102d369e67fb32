import jax
import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.adapters.others import all_losses, answers, drawn, new_losses
from pecft_jax.continual.memory.herding import Exemplars
from pecft_jax.problems import classification
from pecft_jax.typing import Given

from ..tiny import CLASSES, env

LOSSES = classification.losses
OWNER = np.array([0, 0, 1, 1, 1, -1, -1])  # In the second of three tasks.
OTHER = 7  # The first of three outputs for other classes.


def log_softmax(rows):
  rows = np.asarray(rows, np.float64)
  return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def drawn_logits(*shape):
  return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_a_new_head_counts_old_classes_as_its_last_output():
  logits, y = drawn_logits(5, 10), np.array([2, 0, 4, 1, 3])
  own = [2, 3, 4, OTHER + 1]
  right = [0, 3, 2, 3, 1]
  want = -log_softmax(logits[:, own])[np.arange(5), right]
  np.testing.assert_allclose(new_losses(LOSSES, logits, y, env({}, 1)), want, rtol=1e-5)
  # A wrapper may leave classes out, but never the last output.
  among = env({}, 1)._replace(among=jnp.arange(7) > 2)
  found = new_losses(LOSSES, logits, y, among)[1]
  np.testing.assert_allclose(found, -log_softmax(logits[1, [3, 4, OTHER + 1]])[2], rtol=1e-5)


def test_the_losses_of_all_heads_so_far_add_up():
  logits, y = drawn_logits(3, 5, 10), np.array([2, 0, 4, 1, 3])
  first = -log_softmax(logits[0][:, [0, 1, OTHER]])[np.arange(5), [2, 0, 2, 1, 2]]
  second = -log_softmax(logits[1][:, [2, 3, 4, OTHER + 1]])[np.arange(5), [0, 3, 2, 3, 1]]
  found = all_losses(LOSSES, logits, jnp.asarray(OWNER), y, env({}, 1))
  np.testing.assert_allclose(found, first + second, rtol=1e-5)


def test_the_head_that_gives_the_least_to_others_answers():
  logits = 2 * drawn_logits(3, 9, 10)
  shares = [log_softmax(logits[0][:, [0, 1, OTHER]]), log_softmax(logits[1][:, [2, 3, 4, 8]])]
  chosen = np.argmin([share[:, -1] for share in shares], 0)
  assert set(chosen) == {0, 1}
  found = np.asarray(answers(logits, jnp.asarray(OWNER), np.zeros((9, 1)), env({}, 1)))
  for b, task in enumerate(chosen):
    own = list(CLASSES[task])
    np.testing.assert_allclose(found[b, own], shares[task][b, :-1], rtol=1e-4, atol=1e-5)
    rest = [c for c in range(5) if c not in own]
    assert found[b, rest].max() < found[b, own].min()
    # Others keep the order of their own head.
    other = shares[1 - task][b, :-1]
    assert np.argsort(found[b, rest]).tolist() == np.argsort(other).tolist()


def test_a_task_that_the_scenario_gives_answers():
  logits = drawn_logits(3, 9, 10)
  x = Given(np.zeros((9, 1)), task=np.ones(9, np.int32))
  found = answers(logits, jnp.asarray(OWNER), x, env({}, 1))
  assert np.isin(found[:, :5].argmax(1), CLASSES[1]).all()


def test_draws_are_distinct_and_leave_empty_slots_out():
  buffer = Exemplars({'x': jnp.arange(8)}, jnp.array([0, 1, -1, 2, 0, -1, 3, -1]))
  x, y, valid = drawn(buffer, 6, jax.random.key(0))
  assert valid.tolist() == [True] * 5 + [False]
  assert sorted(x[:5].tolist()) == [0, 1, 3, 4, 6]
  assert y[:5].tolist() == buffer.label[x[:5]].tolist() and y.min() >= 0
