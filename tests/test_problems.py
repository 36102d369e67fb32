"""Problems: losses, divergences and judges against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from pecft_jax.problems import classification, need_classes, next_tokens, regression

RNG = np.random.default_rng(0)


def log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_tokens_are_asked_where_the_target_is_not_negative():
  problem, logits = next_tokens(3), RNG.normal(size=(2, 3, 5))
  y = np.array([[4, -1, 0], [-1, -1, 2]])
  log_p = log_softmax(logits)
  want = [-(log_p[0, 0, 4] + log_p[0, 2, 0]) / 2, -log_p[1, 2, 2]]
  np.testing.assert_allclose(problem.losses(jnp.float32(logits), y, None), want, rtol=1e-5)


def test_token_accuracy_counts_tokens_of_valid_texts():
  problem = next_tokens(2)
  answers = jnp.asarray(np.eye(4)[[[1, 2], [3, 0], [1, 1]]], jnp.float32)
  y = jnp.asarray([[1, 3], [3, -1], [1, 1]])
  found = problem.judge(answers, y, jnp.asarray([True, True, False]), None, None)
  assert [int(each) for each in found[:3]] == [2, 2, 3]


def test_regression_adds_up_squared_errors():
  problem = regression(2)
  answers, y = RNG.normal(size=(3, 2)), RNG.normal(size=(3, 2))
  errors = np.square(answers - y).mean(1)
  found = problem.judge(jnp.float32(answers), y, jnp.asarray([True, False, True]), None, None)
  np.testing.assert_allclose(found.score, errors[0] + errors[2], rtol=1e-5)
  np.testing.assert_allclose(problem.losses(jnp.float32(answers), y, None), errors, rtol=1e-5)
  assert int(found.total) == 2 and not problem.measure.higher_is_better


def test_a_class_is_judged_among_those_seen_and_among_its_tasks_own():
  logits = jnp.asarray([
    [0.0, 3.0, 2.0, 9.0],  # Class 1 is the largest of those seen.
    [0.0, 3.0, 2.0, 1.0],  # Class 2 is the largest of its task's own.
    [5.0, 0.0, 1.0, 2.0],  # Class 0 is the largest of all.
    [0.0, 1.0, 7.0, 2.0],  # Would be right both ways, but is not valid.
  ])  # fmt: skip
  seen, own = jnp.asarray([True, True, True, False]), jnp.asarray([False, False, True, True])
  y, valid = jnp.asarray([1, 2, 0, 2]), jnp.asarray([True, True, True, False])
  found = classification.judge(logits, y, valid, seen, own)
  assert [int(each) for each in found[:3]] == [2, 1, 3]


@pytest.mark.parametrize('problem', [next_tokens(3), regression(4)])
def test_methods_that_mean_classes_are_refused_on_other_problems(problem):
  need_classes(classification, 'ease')
  with pytest.raises(ValueError, match=f'ease needs classes, but the problem is {problem.name}'):
    need_classes(problem, 'ease')


def test_divergences_are_zero_for_equal_answers_and_positive_for_others():
  for problem, shape in ((next_tokens(3), (2, 3, 5)), (regression(4), (2, 4))):
    a, b = (jnp.float32(RNG.normal(size=shape)) for _ in range(2))
    np.testing.assert_allclose(problem.divergence(a, a, None, 2.0), np.zeros(2), atol=1e-6)
    assert (np.asarray(problem.divergence(a, b, None, 2.0)) > 0).all()


def test_sizes_below_one_are_refused():
  with pytest.raises(ValueError, match='at least one token'):
    next_tokens(0)
  with pytest.raises(ValueError, match='at least one number'):
    regression(0)
