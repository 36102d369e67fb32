"""Starts a Python file in a process that sees eight virtual devices."""

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

  Args:
    script: its name.
    out: the file.
    *arguments: others of the script.
    flags: of XLA, beside those that give eight devices and compile in half
      the time; nothing in these scripts depends on the speed of what is compiled.
  """
  given = ('--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0')
  paths = [str(HERE.parent), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join((*given, *flags)),
    'PYTHONPATH': os.pathsep.join(paths),
  }
  done = subprocess.run(
    [sys.executable, str(HERE / script), str(out), *arguments],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(out.read_text())
