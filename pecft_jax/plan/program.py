"""What a traced function computes: its operations in order, with calls inlined and dead code gone.

Nothing is compiled or run: a program is read off the jaxpr of `jax.jit(f).trace(*shapes)`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
  """One array of a program, told apart by identity."""

  shape: tuple[int, ...]
  dtype: Any

  @property
  def size(self) -> int:
    """Number of scalars."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Of all scalars; keys count as their data."""
    if jax.dtypes.issubdtype(self.dtype, jax.dtypes.prng_key):
      return self.size * 8
    return self.size * np.dtype(self.dtype).itemsize


class Body(NamedTuple):
  """A program within an operation.

  Attributes:
    program: what is run.
    times: how often; None where that is known only at run time.
  """

  program: 'Program'
  times: int | None


class Op(NamedTuple):
  """One operation.

  Attributes:
    name: of the jax primitive.
    inputs: what it reads, constants included.
    outputs: what it makes; those that nothing reads stay, so that positions are jax's own.
    params: of the primitive.
    bodies: of a loop or of whatever else runs programs; of a `cond`, the branches, one of which
      is run.
  """

  name: str
  inputs: tuple[Value, ...]
  outputs: tuple[Value, ...]
  params: Mapping[str, Any]
  bodies: tuple[Body, ...] = ()


class Program(NamedTuple):
  """Operations in order."""

  inputs: tuple[Value, ...]
  ops: tuple[Op, ...]
  outputs: tuple[Value, ...]


def program_of(function: Callable[..., Any], *args: Any) -> Program:
  """The program of a function of pytrees.

  Args:
    function: pure.
    *args: arrays, or their shapes.
  """
  return pruned(_inlined(jax.jit(function).trace(*args).jaxpr))


def pruned(program: Program, keep: Sequence[bool] | None = None) -> Program:
  """Leaves out what the outputs do not depend on, inside of loops and branches, too.

  Args:
    program: any.
    keep: the outputs that matter; all by default. All stay in place.
  """
  keep = [True] * len(program.outputs) if keep is None else keep
  wanted = {value for value, kept in zip(program.outputs, keep, strict=True) if kept}
  ops: list[Op] = []
  for op in reversed(program.ops):
    used = [value in wanted for value in op.outputs]
    if any(used):
      kept, reads = _pruned_op(op, used)
      wanted |= {value for value, read in zip(op.inputs, reads, strict=True) if read}
      ops.append(kept)
  return Program(program.inputs, tuple(reversed(ops)), program.outputs)


# --- reading jaxprs ------------------------------------------------------------------------------

# What XLA inlines, too.
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint',
          'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr')  # fmt: skip


def _inlined(jaxpr: Any) -> Program:
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)  # Closed or open.
  inputs = tuple(_value(v) for v in jaxpr.invars)
  ops: list[Op] = []
  outputs = _append(ops, jaxpr, inputs)
  return Program(inputs, tuple(ops), outputs)


def _append(ops: list[Op], jaxpr: Any, inputs: Sequence[Value]) -> tuple[Value, ...]:
  """Appends the operations of a jaxpr; returns its outputs."""
  known = dict(zip(jaxpr.invars, inputs, strict=True))
  known |= {v: _value(v) for v in jaxpr.constvars}
  read = lambda atom: _value(atom) if _is_literal(atom) else known[atom]
  for eqn in jaxpr.eqns:
    name, arguments = eqn.primitive.name, tuple(read(v) for v in eqn.invars)
    inner = list(_jaxprs(eqn.params))
    if name in _CALLS and len(inner) == 1:
      outputs = _append(ops, inner[0], arguments)
    else:
      outputs = tuple(_value(v) for v in eqn.outvars)
      bodies = tuple(Body(_inlined(each), _times(eqn)) for each in inner)
      ops.append(Op(name, arguments, outputs, eqn.params, bodies))
    known |= dict(zip(eqn.outvars, outputs, strict=True))
  return tuple(read(v) for v in jaxpr.outvars)


def _value(atom: Any) -> Value:
  aval = atom.aval
  return Value(tuple(getattr(aval, 'shape', ())), getattr(aval, 'dtype', np.dtype(bool)))


def _is_literal(atom: Any) -> bool:
  return hasattr(atom, 'val')


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
  for value in params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      inner = getattr(each, 'jaxpr', each)
      if hasattr(inner, 'eqns'):
        yield inner


def _times(eqn: Any) -> int | None:
  if eqn.primitive.name == 'shard_map':
    mesh = eqn.params['mesh']
    return math.prod(mesh.shape[axis] for axis in eqn.params['manual_axes'])
  return {'scan': eqn.params.get('length'), 'while': None}.get(eqn.primitive.name, 1)


# --- dead code -----------------------------------------------------------------------------------


def _pruned_op(op: Op, used: Sequence[bool]) -> tuple[Op, list[bool]]:
  """The operation, and which inputs it reads, where only some outputs are used."""
  if op.name == 'cond':
    programs = [pruned(body.program, used) for body in op.bodies]
    reads = [any(each) for each in zip(*map(_reads, programs), strict=True)]
    bodies = tuple(Body(program, 1) for program in programs)
    return op._replace(bodies=bodies), [True, *reads]
  if op.name == 'scan':
    return _pruned_scan(op, list(used))
  bodies = tuple(body._replace(program=pruned(body.program)) for body in op.bodies)
  return op._replace(bodies=bodies), [True] * len(op.inputs)


def _pruned_scan(op: Op, used: list[bool]) -> tuple[Op, list[bool]]:
  (body,) = op.bodies
  program, (consts, carries) = body.program, scan_split(op)
  while True:
    smaller = pruned(program, used)
    reads = _reads(smaller, used)
    # What the next step reads of the state must be computed in this one.
    more = [kept or reads[consts + i] for i, kept in enumerate(used[:carries])]
    if more == used[:carries]:
      return op._replace(bodies=(Body(smaller, body.times),)), reads
    used = more + used[carries:]


def scan_split(op: Op) -> tuple[int, int]:
  """How many inputs of a `scan` are the same in all steps, and how many outputs are its state.

  Inputs are [constants, state, rows], outputs [state, rows]; rows have one axis more outside.
  """
  (body,) = op.bodies
  rows = sum(
    len(out.shape) > len(inner.shape)
    for out, inner in zip(op.inputs, body.program.inputs, strict=True)
  )
  carries = sum(
    len(out.shape) == len(inner.shape)
    for out, inner in zip(op.outputs, body.program.outputs, strict=True)
  )
  return len(op.inputs) - rows - carries, carries


def _reads(program: Program, keep: Sequence[bool] | None = None) -> list[bool]:
  """Which inputs are read by an operation, or are outputs that are kept."""
  keep = [True] * len(program.outputs) if keep is None else keep
  read = {value for op in program.ops for value in op.inputs}
  read |= {value for value, kept in zip(program.outputs, keep, strict=True) if kept}
  return [value in read for value in program.inputs]
