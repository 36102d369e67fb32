"""Runs one tiny experiment in this process, which the test kills."""

import jax
from tiny_runs import quiet

from faults.tiny import experiment
from pecft_jax.train import run

METHODS = ('derpp(olora)', 'ease', 'l2p', 'ranpac')


def main(method: str, workdir: str, cache: str, save_every: float = 0.0) -> None:
  """Starts or resumes a run that saves after every batch.

  Args:
    method: one of `METHODS`.
    workdir: of the run.
    cache: directory of compiled programs, so that a restart is quick.
    save_every: seconds.
  """
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  run(experiment(method=method), workdir, save_every=save_every, console=quiet())
