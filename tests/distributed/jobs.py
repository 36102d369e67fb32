"""Jobs of several processes of the real command, on this machine, over gloo."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

TESTS = pathlib.Path(__file__).parents[1]
# One process may be slow to start where all cores are busy; a job that hangs is killed in the end.
PATIENCE = 240.0


def start(
  processes: int,
  workdir: pathlib.Path,
  *flags: str,
  cache: pathlib.Path,
  devices: int = 1,
  slurm: bool = False,
) -> list[subprocess.Popen[str]]:
  """Starts `pecft run tests/tiny_file.py` as a job.

  Args:
    processes: how many; with one, there is no coordinator.
    workdir: of the run.
    *flags: of the experiment and the run.
    cache: directory of compiled programs, so that a restart is quick.
    devices: of each process.
    slurm: tell processes of each other by the variables that srun sets, not by flags.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  xla = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(cache / f'{processes}x{devices}'),
    'XLA_FLAGS': xla,
    'PYTHONPATH': os.pathsep.join(
      [str(TESTS.parent), str(TESTS), os.environ.get('PYTHONPATH', '')]
    ),
  }
  job = []
  for i in range(processes):
    own, around = [], {}
    if slurm:
      own = ['--coordinator', 'auto']
      around = {
        'SLURM_JOB_ID': str(port),  # JAX derives its own port from it.
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': str(processes),
        'SLURM_PROCID': str(i),
        'SLURM_LOCALID': str(i),
      }
    elif processes > 1:
      own = ['--coordinator', f'localhost:{port}', '--processes', str(processes)]
      own += ['--process-id', str(i)]
    command = [sys.executable, '-m', 'pecft_jax.cli', 'run', str(TESTS / 'tiny_file.py')]
    command += ['--workdir', str(workdir), *flags, *own]
    job.append(
      subprocess.Popen(
        command, env=env | around, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
      )
    )
  return job


def finish(job: Sequence[subprocess.Popen[str]], seconds: float = PATIENCE) -> list[str]:
  """What the processes of a job print, once all have ended."""
  try:
    return [process.communicate(timeout=seconds)[0] for process in job]
  finally:
    for process in job:
      process.kill()


def run_job(processes: int, workdir: pathlib.Path, *flags: str, **how) -> list[str]:
  """Runs a job that must succeed."""
  job = start(processes, workdir, *flags, **how)
  printed = finish(job)
  assert [process.returncode for process in job] == [0] * processes, '\n'.join(printed)
  return printed
