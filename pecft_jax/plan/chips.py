"""Accelerators, with their vendors' figures.

Peaks are of dense arithmetic (vendors' figures for NVIDIA chips with structured sparsity are
halved), sizes are read as decimal where a document says GB. The link is what one chip can send
to others of its slice or board in one direction, over all of its ports.
"""

from typing import NamedTuple

from pecft_jax.paths import unknown


class Chip(NamedTuple):
  """One device.

  Attributes:
    name: for tables.
    bf16: FLOP/s of bfloat16 matrix products.
    float32: FLOP/s of float32 matrix products at jax's default precision: TPUs round their
      operands to bfloat16, NVIDIA's chips to TF32.
    memory: bytes of HBM.
    bandwidth: bytes/s of HBM.
    link: bytes/s to other chips, one direction.
    sources: where the figures are from.
  """

  name: str
  bf16: float
  float32: float
  memory: float
  bandwidth: float
  link: float
  sources: tuple[str, ...]


_TPU = 'https://cloud.google.com/tpu/docs'
_NVIDIA = 'https://www.nvidia.com/en-us/data-center'

_ALL = (
  Chip(
    'TPU v4',
    bf16=275e12,
    float32=275e12,
    memory=32 * 2**30,
    bandwidth=1200e9,
    link=300e9,
    sources=(f'{_TPU}/v4', 'link: Jouppi et al., 2023, arXiv:2304.01433, 6 links of 50 GB/s'),
  ),
  Chip(
    'TPU v5e',
    bf16=197e12,
    float32=197e12,
    memory=16e9,
    bandwidth=819e9,
    link=200e9,
    sources=(f'{_TPU}/v5e, 400 GB/s in both directions',),
  ),
  Chip(
    'TPU v5p',
    bf16=459e12,
    float32=459e12,
    memory=95e9,
    bandwidth=2765e9,
    link=600e9,
    sources=(f'{_TPU}/v5p-training, 1200 GB/s in both directions',),
  ),
  Chip(
    'TPU v6e',
    bf16=918e12,
    float32=918e12,
    memory=32e9,
    bandwidth=1600e9,
    link=400e9,
    sources=(f'{_TPU}/v6e, 800 GB/s in both directions',),
  ),
  Chip(
    'A100 80GB SXM',
    bf16=312e12,
    float32=156e12,
    memory=80e9,
    bandwidth=2039e9,
    link=300e9,
    sources=(f'{_NVIDIA}/a100 (data sheet), NVLink 600 GB/s in both directions',),
  ),
  Chip(
    'H100 SXM',
    bf16=989.4e12,
    float32=494.7e12,
    memory=80e9,
    bandwidth=3350e9,
    link=450e9,
    sources=(f'{_NVIDIA}/h100 (data sheet), NVLink 900 GB/s in both directions',),
  ),
  Chip(
    'H200 SXM',
    bf16=989.4e12,
    float32=494.7e12,
    memory=141e9,
    bandwidth=4800e9,
    link=450e9,
    sources=(f'{_NVIDIA}/h200 (data sheet), NVLink 900 GB/s in both directions',),
  ),
)


def _key(name: str) -> str:
  return name.lower().replace('tpu', '').split()[0]


CHIPS: dict[str, Chip] = {_key(chip.name): chip for chip in _ALL}


def find_chip(name: str) -> Chip:
  """A chip by the short name of `CHIPS`, or as in tables.

  Args:
    name: `h100`, or as in tables, `NVIDIA H100`.

  Raises:
    ValueError: for an unknown name; lists those there are.

  >>> find_chip('TPU v4').memory // 2**30
  32
  """
  by_title = {chip.name: chip for chip in _ALL}
  if name in by_title:
    return by_title[name]
  if name.lower() not in CHIPS:
    raise unknown('chip', name, CHIPS)
  return CHIPS[name.lower()]
