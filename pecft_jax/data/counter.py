"""Random numbers as pure functions of counters, in vectorised numpy.

What is drawn for an example depends on its place in the stream alone: not on the batch size, the
number of processes, the threads or a restart. Nor does it change with numpy's version, as its
generators' streams may. The mixing function is SplitMix64 (Steele, Lea and Flood, 2014,
doi:10.1145/2660193.2660195).
"""

from typing import Any

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def bits(seed: int, *counters: np.ndarray | int) -> np.ndarray:
  """64 random bits for each combination of counters.

  Args:
    seed: any integer; taken modulo 2 ** 64.
    *counters: non-negative integers or arrays of them, which broadcast.

  Returns:
    np.uint64, of the counters' common shape.
  """
  state = np.uint64(seed % 2**64)
  with np.errstate(over='ignore'):  # Overflow wraps around, as intended.
    state = _mix(state + _STEP)
    for counter in counters:
      state = _mix(state + _STEP * (np.asarray(counter).astype(np.uint64) + np.uint64(1)))
  return np.asarray(state)


def _mix(state: Any) -> Any:
  state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
  state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
  return state ^ (state >> np.uint64(31))


def uniforms(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
  """Uniform float32 [n, count] in [0, 1), a row for each of the positions [n]."""
  drawn = bits(seed, np.asarray(positions)[:, None], np.arange(count)[None, :])
  # 24 bits are what a float32 holds exactly, so that 1.0 cannot come out.
  return (drawn >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """A permutation of 0..n-1 for each (seed, epoch): np.int64 [n]."""
  return np.argsort(bits(seed, epoch, np.arange(n)), kind='stable')


def fold_seed(seed: int, *numbers: int) -> int:
  """A seed for each combination of numbers, as in `fold_seed(seed, task)`; 63 bits.

  Args:
    seed: any integer.
    *numbers: non-negative integers.

  >>> fold_seed(0, 1) == fold_seed(0, 1), fold_seed(0, 1) == fold_seed(0, 2)
  (True, False)
  """
  return int(bits(seed, *numbers)) >> 1
