"""What a program writes to memory, and the most that it holds at once.

A compiler joins element-wise operations with what reads them, so that most arrays of a program
are never written. How far it goes differs from compiler to compiler. Two ends are modelled:
nothing is joined (`apart`), and all element-wise chains are (`fused`).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pecft_jax.plan.kinds import JOINED, JOINING, PARTS, VIEWS
from pecft_jax.plan.program import Body, Op, Program, Value


class Kernel(NamedTuple):
  """What is computed at one go.

  Attributes:
    reads: from memory: arrays, and how many bytes of each.
    writes: arrays that are written to memory.
    bodies: of the operation, if it is a loop.
  """

  reads: dict[Value, int]
  writes: tuple[Value, ...]
  bodies: tuple[Body, ...]


Kernels = Callable[[Program], list[Kernel]]


def apart(program: Program) -> list[Kernel]:
  """Every operation is a kernel."""
  return [
    Kernel({value: value.bytes for value in op.inputs}, op.outputs, op.bodies) for op in program.ops
  ]


def fused(program: Program) -> list[Kernel]:
  """Element-wise operations are part of the kernels that read them.

  They are computed anew in each of those, but for two cases, in which the array is written: a
  matrix product or a loop reads it; or it takes more than two others to compute it again.
  """
  readers, outputs = _readers(program), set(program.outputs)
  kernels: list[Kernel] = []
  # What is to be read from memory for each array: just itself, once it is written.
  sources = {value: {value: value.bytes} for value in program.inputs}
  in_place = set(program.inputs)  # Written, or a view of what is written.

  def keeps(op: Op, out: Value, reads: dict[Value, int]) -> bool:
    if op.name not in JOINED:
      return True
    if op.name in VIEWS and all(value in in_place for value in op.inputs):
      in_place.add(out)
      return False
    following = readers.get(out, [])
    needed = out in outputs or any(other.name not in JOINING for other in following)
    return needed or (len(reads) > 2 and len(following) > 1 and op.name not in VIEWS)

  for op in program.ops:
    reads: dict[Value, int] = {}
    for value in op.inputs:
      for source, size in sources.get(value, {}).items():
        reads[source] = max(size, reads.get(source, 0))
    written = tuple(out for out in op.outputs if keeps(op, out, reads))
    part = {v: min(n, op.outputs[0].bytes) for v, n in reads.items()}
    rest = part if op.name in PARTS else reads
    sources |= {out: {out: out.bytes} if out in written else rest for out in op.outputs}
    in_place.update(written)
    if written:
      kernels.append(Kernel(reads, written, op.bodies))
  return kernels


def traffic(program: Program, trips: int = 1) -> int:
  """Bytes that the fused program reads from memory and writes to it.

  Args:
    program: any.
    trips: of loops whose length is known at run time only.
  """
  total = 0
  for kernel in fused(program):
    if kernel.bodies:
      times = (trips if body.times is None else body.times for body in kernel.bodies)
      parts = (traffic(body.program, trips) for body in kernel.bodies)
      total += sum(n * part for n, part in zip(times, parts, strict=True))
    else:
      total += sum(kernel.reads.values()) + sum(value.bytes for value in kernel.writes)
  return total


def peak(program: Program, kernels: Kernels, given: Iterable[Value] = ()) -> int:
  """The most bytes held at once in arrays that the program makes.

  Kernels run in the program's order; an array is held from the kernel that writes it to the last
  one that reads it, outputs to the end.

  Args:
    program: any.
    kernels: `apart` or `fused`.
    given: outputs that have a place of their own, and so do not count.
  """
  order = kernels(program)
  last: dict[Value, int] = {}
  for i, kernel in enumerate(order):
    last |= dict.fromkeys(kernel.reads, i)
  last |= dict.fromkeys(program.outputs, len(order))
  elsewhere = set(program.inputs) | set(given)
  ending: dict[int, list[Value]] = {}
  held = most = 0
  for i, kernel in enumerate(order):
    within = max((peak(body.program, kernels) for body in kernel.bodies), default=0)
    for value in kernel.writes:
      if value in last and value not in elsewhere:
        held += value.bytes
        ending.setdefault(last[value], []).append(value)
    most = max(most, held + within)
    held -= sum(value.bytes for value in ending.get(i, ()))
  return most


def _readers(program: Program) -> dict[Value, list[Op]]:
  readers: dict[Value, list[Op]] = {}
  for op in program.ops:
    for value in op.inputs:
      readers.setdefault(value, []).append(op)
  return readers
