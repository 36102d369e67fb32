"""An experiment file for the command line: tiny runs of any method."""

import jax
from tiny_runs import TRAINING, tiny_experiment, tiny_method

# Restarts are quick where JAX_COMPILATION_CACHE_DIR is set.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def experiment(
  *,
  method: str = 'finetune',
  tasks: int = 2,
  epochs: int = 2,
  batch_size: int = 4,
  eval_batch_size: int = 4,
  cache_queries: bool = False,
  joint: bool = False,
  seed: int = 0,
):
  """A few small tasks.

  Args:
    method: of tiny_runs.
    tasks: of two classes each.
    epochs: passes over each task.
    batch_size: of training.
    eval_batch_size: of all else.
    cache_queries: compute frozen queries once per example.
    joint: also run joint training.
    seed: of initialisation and order.
  """
  training = TRAINING._replace(
    epochs=epochs,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    cache_queries=cache_queries,
  )
  references = {'joint': tiny_method('joint', tasks)} if joint else {}
  return tiny_experiment(method, tasks, training=training, references=references, seed=seed)
