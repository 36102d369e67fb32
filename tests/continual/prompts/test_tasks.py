import jax.numpy as jnp
import numpy as np

from pecft_jax.continual.prompts.tasks import task_or, with_tasks_of_labels
from pecft_jax.typing import Batch, Given

from ..tiny import env


def test_a_task_that_is_given_and_was_seen_goes_before_another():
  x = Given(jnp.zeros((4, 2)), task=jnp.asarray([-1, 0, 1, 2]))
  assert task_or(x, env({}, 1), jnp.asarray(7)).tolist() == [7, 0, 1, 7]
  assert task_or(x.x, env({}, 1), jnp.asarray([3, 4, 5, 6])).tolist() == [3, 4, 5, 6]


def test_labels_give_the_current_task_or_the_first_one_of_the_class():
  y = np.array([0, 2, 3, 5, 6])  # Of tasks 0, 1, 1, 2, 2.
  some = Batch(jnp.zeros((5, 2)), y, np.ones(5, bool), y)
  task = lambda t, classes: with_tasks_of_labels(some, env({}, t, classes)).x.task.tolist()
  assert task(2, ((0, 1), (2, 3, 4), (5, 6))) == [0, 1, 1, 2, 2]
  # A class that comes again is of the current task; labels not seen yet are padding.
  assert task(1, ((0, 2, 3), (2, 3), (5, 6))) == [0, 1, 1, 1, 1]
