"""FLOPs of a program, counted by the shapes of its operations.

Matrix products are counted exactly: 2 m n k, in loops as often as they run. The rest is an
estimate: one for each element that an arithmetic operation makes, or a reduction reads.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from pecft_jax.plan.kinds import ARITHMETIC, REDUCTIONS
from pecft_jax.plan.program import Op, Program


class Flops(NamedTuple):
  """Floating-point operations.

  Attributes:
    matmul: of matrix products and convolutions, by the dtype of their operands.
    other: of everything else.
  """

  matmul: dict[str, float]
  other: float

  @property
  def total(self) -> float:
    """Of both kinds."""
    return sum(self.matmul.values()) + self.other

  def times(self, factor: float) -> 'Flops':
    """As many repetitions."""
    return Flops({k: factor * v for k, v in self.matmul.items()}, factor * self.other)

  def plus(self, more: 'Flops') -> 'Flops':
    """One after the other."""
    kinds = self.matmul.keys() | more.matmul.keys()
    matmul = {k: self.matmul.get(k, 0.0) + more.matmul.get(k, 0.0) for k in sorted(kinds)}
    return Flops(matmul, self.other + more.other)


NONE = Flops({}, 0.0)


def flops(program: Program, trips: int = 1) -> Flops:
  """Counts a program; of branches the costliest.

  Args:
    program: any.
    trips: of loops whose length is known at run time only.
  """
  total = NONE
  for op in program.ops:
    bodies = [
      flops(body.program, trips).times(trips if body.times is None else body.times)
      for body in op.bodies
    ]
    if op.name == 'cond':
      bodies = [max(bodies, key=lambda each: each.total)]
    for each in bodies:
      total = total.plus(each)
    total = total.plus(_own(op))
  return total


def _own(op: Op) -> Flops:
  if op.name == 'dot_general':
    return Flops({_dtype(op): float(_dot(op))}, 0.0)
  if op.name == 'conv_general_dilated':
    return Flops({_dtype(op): float(_convolution(op))}, 0.0)
  if op.name in ARITHMETIC:
    return Flops({}, float(op.outputs[0].size))
  if op.name in REDUCTIONS:
    return Flops({}, float(op.inputs[0].size))
  return NONE


def _dot(op: Op) -> int:
  (contracted, _), _ = op.params['dimension_numbers']
  inner = math.prod(op.inputs[0].shape[axis] for axis in contracted)
  return 2 * op.outputs[0].size * inner


def _convolution(op: Op) -> int:
  # Each output is a sum over one filter: all of the kernel but its axis of output channels.
  kernel, out_axis = op.inputs[1], op.params['dimension_numbers'].rhs_spec[0]
  filter_size = kernel.size // kernel.shape[out_axis]
  return 2 * op.outputs[0].size * filter_size // op.params['batch_group_count']


def _dtype(op: Op) -> str:
  return str(np.dtype(jax.numpy.promote_types(op.inputs[0].dtype, op.inputs[1].dtype)))
