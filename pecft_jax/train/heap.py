"""Keeps freed memory for the next step, on Linux with glibc.

XLA on the CPU allocates its temporaries again at every step; by default each
of these large blocks is mapped and unmapped, and page faults take up to half
of the time. Accelerators have allocators of their own.
"""

import ctypes
import ctypes.util
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_heap() -> bool:
  """Tells malloc to keep what is freed; before the first step. True where it took effect."""
  if not sys.platform.startswith('linux'):
    return False
  library = ctypes.CDLL(ctypes.util.find_library('c'))
  if not hasattr(library, 'mallopt'):
    return False
  settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))  # -1: never.
  return all(library.mallopt(name, value) for name, value in settings)
