"""Starts a Python file in a process that sees eight virtual devices."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

HERE = pathlib.Path(__file__).parent


def report_of(script: str, out: pathlib.Path, *arguments: str, flags: Sequence[str] = ()) -> Any:
  """What a script of this folder, called with the path of a file, writes there as JSON.

  It runs once, however many workers of a test session ask for the file.

  Args:
    script: its name.
    out: the file, in a directory that the workers have in common.
    *arguments: others of the script.
    flags: of XLA, beside those of the session and the one that gives eight devices.
  """
  given = (os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8')
  paths = [str(HERE.parent), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join((*given, *flags)),
    'PYTHONPATH': os.pathsep.join(paths),
  }
  with open(f'{out}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Another worker may be at it.
    if not out.exists():
      part = out.with_suffix('.part')
      done = subprocess.run(
        [sys.executable, str(HERE / script), str(part), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
      )
      assert done.returncode == 0, done.stderr[-4000:]
      part.rename(out)
  return json.loads(out.read_text())
