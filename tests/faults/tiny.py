"""An experiment file for `pecft run`, so small that it can be run hundreds of times.

A fault comes by the environment: the file itself is part of what a run is identified by.
"""

import os

from tiny_runs import TRAINING, tiny_experiment

from faults import hooks
from pecft_jax.train import Experiment, sgd

if FAULT := os.environ.get('PECFT_TEST_FAULT'):
  eval(f'hooks.{FAULT}', {'hooks': hooks})


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
