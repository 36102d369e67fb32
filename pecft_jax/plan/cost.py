"""FLOPs and temporaries of a function, from shapes: nothing is compiled, run or allocated.

FLOPs are XLA's own count (`cost_analysis` of the lowered program), which counts a loop's body once:
its further iterations are added here. Temporaries are not known before compilation; they are
estimated from the lifetimes of the arrays in the jaxpr.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

# These give a view of an array or of a part of it, and allocate nothing.
_VIEWS = {
  'reshape', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'transpose', 'slice', 'split', 'copy',
  'rev', 'stop_gradient',
}  # fmt: skip


def flops(function: Callable[..., Any], *args: Any, turns: int = 1) -> float:
  """Floating-point operations of a function, of which matrix products are nearly all.

  Args:
    function: pure.
    *args: arrays, or their shapes.
    turns: assumed iterations of loops whose number of iterations is known only at run time.

  Example:
    >>> x = jax.ShapeDtypeStruct((3, 5), jax.numpy.float32)
    >>> flops(lambda x: x @ x.T, x)
    90.0
  """
  traced = jax.jit(function).trace(*args)
  cost: Any = traced.lower().cost_analysis()
  return float(cost.get('flops', 0.0)) + _more_turns(traced.jaxpr.jaxpr, turns)


def _more_turns(jaxpr: Any, turns: int) -> float:
  """FLOPs of all iterations of loops after the first."""
  total = 0.0
  for eqn in jaxpr.eqns:
    more = {'scan': eqn.params.get('length', 1), 'while': turns}.get(eqn.primitive.name, 1) - 1
    for body in _bodies(eqn):
      if more:
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.invars]
        total += more * flops(jaxpr_as_fun(body), *shapes, turns=turns)
      total += _more_turns(body.jaxpr, turns)
  return total


def _bodies(eqn: Any) -> Iterator[ClosedJaxpr]:
  """The jaxprs that an operation runs: loop bodies, branches of a condition, functions."""
  for value in eqn.params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      if hasattr(each, 'consts'):
        yield each
      elif hasattr(each, 'eqns'):
        yield ClosedJaxpr(each, ())


def temporaries(function: Callable[..., Any], *args: Any) -> int:
  """The most bytes that a function holds at once besides its arguments and results.

  Every operation but views writes its result, in the order in which they were traced, and it is
  held until it is last read. A compiler that fuses operations holds less.

  Args:
    function: pure.
    *args: arrays, or their shapes.

  Example:
    >>> x = jax.ShapeDtypeStruct((1000,), jax.numpy.float32)
    >>> temporaries(lambda x: jax.numpy.sin(jax.numpy.cos(x)).sum(), x)
    8000
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return _peak(jaxpr, {v for v in jaxpr.outvars if not isinstance(v, Literal)})


def _peak(jaxpr: Any, free: set[Any]) -> int:
  """The most bytes that the results of a jaxpr take at once, except the free ones."""
  shown: dict[Any, Any] = {}  # The array that a view is of.
  last: dict[Any, int] = {}  # The equation that reads a value last.
  for i, eqn in enumerate(jaxpr.eqns):
    read = [v for v in eqn.invars if not isinstance(v, Literal)]
    if eqn.primitive.name in _VIEWS and read:
      shown |= dict.fromkeys(eqn.outvars, shown.get(read[0], read[0]))
    last |= {shown.get(v, v): i for v in read}
  last |= {shown.get(v, v): len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}
  ending: dict[int, list[Any]] = {}
  for value, i in last.items():
    ending.setdefault(i, []).append(value)
  held: dict[Any, int] = {}
  now = most = 0
  for i, eqn in enumerate(jaxpr.eqns):
    made = {v: _bytes(v) for v in eqn.outvars if v not in shown and v not in free}
    inner = [_peak(body.jaxpr, set()) for body in _bodies(eqn)]
    most = max(most, now + max(sum(made.values()), *inner, 0))
    held |= {v: size for v, size in made.items() if last.get(v, i) > i}
    now += sum(size for v, size in made.items() if last.get(v, i) > i)
    now -= sum(held.pop(v, 0) for v in ending.get(i, ()))
  return most


def _bytes(value: Any) -> int:
  aval = value.aval
  if not hasattr(aval, 'dtype'):
    return 0
  # Keys count as their data.
  item = 8 if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key) else aval.dtype.itemsize
  return math.prod(aval.shape) * item
