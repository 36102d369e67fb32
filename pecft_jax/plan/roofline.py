"""The roofline time of a step on a chip: only its peak rates limit it (Williams et al., 2009)."""

from typing import NamedTuple

from pecft_jax.plan.chips import Chip


class Times(NamedTuple):
  """Seconds that each resource of a device is busy in one step."""

  compute: float
  memory: float
  link: float

  @property
  def bound(self) -> str:
    """The resource that is busy longest."""
    return max(self._fields, key=lambda name: getattr(self, name))

  def step(self, utilisation: float) -> float:
    """Expected seconds of a step: resources work in parallel, and reach a share of the roofline.

    Raises:
      ValueError: for a share that is not in (0, 1].
    """
    check_utilisation(utilisation)
    return max(self) / utilisation


def check_utilisation(share: float) -> None:
  """Raises ValueError for a share of the roofline that is not in (0, 1]."""
  if not 0 < share <= 1:
    raise ValueError(f'utilisation must be in (0, 1], got {share}')


def times(chip: Chip, flops: float, traffic: float, sent: float, dtype: str = 'bfloat16') -> Times:
  """Seconds of one step on one device.

  Args:
    chip: its peaks.
    flops: per device.
    traffic: bytes to and from its memory.
    sent: bytes to other devices.
    dtype: of the matrix products.

  Example:
    >>> from pecft_jax.plan.chips import find_chip
    >>> times(find_chip('h100'), flops=989.4e12, traffic=0, sent=0).step(0.5)
    2.0
  """
  peak = chip.bf16 if dtype in {'bfloat16', 'float16'} else chip.float32
  return Times(flops / peak, traffic / chip.bandwidth, sent / chip.link)
