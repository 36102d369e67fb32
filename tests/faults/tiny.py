"""An experiment file for `pecft run`, so small that it can be run hundreds of times."""

from tiny_runs import TRAINING, tiny_experiment

from pecft_jax.train import Experiment, sgd


def experiment(*, method: str = 'ease', epochs: int = 2) -> Experiment:
  """Two tasks of two classes.

  Args:
    method: what learns, a name that `tiny_runs` knows.
    epochs: passes over the data of each task.
  """
  training = TRAINING._replace(epochs=epochs)
  if method == 'l2p':
    training = training._replace(cache_queries=True, recipe=sgd(0.05, accumulate=2))
  return tiny_experiment(method, training=training)
