import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='malloc settings are glibc ones')
def test_settings_take_effect_and_a_step_still_runs():
  # In a process of its own: the settings stay.
  code = (
    'import jax.numpy as jnp; from pecft_jax.train.heap import keep_heap; '
    'print(keep_heap(), float(jnp.ones((300, 300)).sum()))'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.split() == ['True', '90000.0']
