"""How a wrapper is made: every hook of the inner method, some of them replaced.

A wrapper's memory is `{'inner': memory of the inner method, ...}`.
"""

import dataclasses
from typing import Any

from pecft_jax.typing import (
  Batch,
  ContinualMethod,
  Env,
  Fit,
  Gather,
  Key,
  Once,
  Output,
  Params,
  Parts,
  Phase,
  PredictHook,
  Update,
)


def wrap(
  inner: ContinualMethod, name: str, *, phases: tuple[Phase, ...] = (), **hooks: Any
) -> ContinualMethod:
  """A method that does what `inner` does, except for the given hooks.

  Args:
    inner: any method.
    name: of the wrapper; the result is called `name(inner)`.
    phases: of the wrapper, after those of the inner method that follow the same phase. They see the
      wrapper's memory.
    **hooks: fields of `ContinualMethod`; they see the wrapper's memory. One that
      replaces a hook calls the inner method's itself, where there is one:
      `begun`, `observed`, `consolidated` and `ended` do.

  Raises:
    ValueError: if the inner method trains nothing after its first task (there
      is nothing to forget then), or sees all data anyway.
  """
  check_forgets(inner, name)
  passed: dict[str, Any] = {
    'forward': _reading(inner.forward),
    'loss': _reading(inner.loss),
    'predict': _predicting(inner.predict),
    'adapted': _reading(inner.adapted),
    'begin_task': _changing_both(inner.begin_task),
    'end_task': _changing_both(inner.end_task),
    'observe': _changing_both(inner.observe),
    'prepare': _changing_memory(inner.prepare),
    'consolidate': _changing_memory(inner.consolidate),
    'project': _projecting(inner.project),
    'joined': inner.joined and inner.joined._replace(read=_reading_memory(inner.joined.read)),
    'phases': (*lifted(inner.phases), *phases),
  }
  # The settings are those of the wrapper, which its factory records.
  return inner._replace(name=f'{name}({inner.name})', settings=None, **{**passed, **hooks})


def check_forgets(inner: ContinualMethod, name: str) -> None:
  """Raises ValueError for a method that a wrapper has nothing to do for.

  Args:
    inner: the method.
    name: of the wrapper.
  """
  if not inner.trains(1):
    raise ValueError(
      f'{name} has no effect on {inner.name}, which trains nothing after the first task; '
      'wrap a method that trains on every task'
    )
  if inner.cumulative:
    raise ValueError(f'{name} has no meaning around {inner.name}, which keeps all data anyway')


def lifted(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
  """The phases of an inner method as those of a wrapper."""

  def one(phase: Phase) -> Phase:
    if isinstance(phase, Once):
      return phase._replace(hook=_changing_both(phase.hook))
    if isinstance(phase, Gather):
      return phase._replace(hook=_changing_memory(phase.hook))
    assert isinstance(phase, Fit)
    return phase._replace(loss=_reading(phase.loss))

  return tuple(map(one, phases))


def begun(
  inner: ContinualMethod, params: Params, memory: Any, env: Env, key: Key
) -> tuple[Params, Any]:
  """State after the inner method's `begin_task`; unchanged where it has none."""
  return (
    (params, memory) if inner.begin_task is None else inner.begin_task(params, memory, env, key)
  )


def observed(
  inner: ContinualMethod, params: Params, memory: Any, env: Env, batch: Batch, out: Output,
  update: Update, key: Key,
) -> tuple[Params, Any]:  # fmt: skip
  """State after the inner method's `observe`; unchanged where it has none."""
  if inner.observe is None:
    return params, memory
  return inner.observe(params, memory, env, batch, out, update, key)


def consolidated(
  inner: ContinualMethod, params: Params, memory: Any, env: Env, batch: Batch
) -> Any:
  """Memory after the inner method's `consolidate`; unchanged where it has none."""
  return memory if inner.consolidate is None else inner.consolidate(params, memory, env, batch)


def ended(inner: ContinualMethod, params: Params, memory: Any, env: Env) -> tuple[Params, Any]:
  """State after the inner method's `end_task`; unchanged where it has none."""
  return (params, memory) if inner.end_task is None else inner.end_task(params, memory, env)


def _reading(hook: Any) -> Any:
  """`(params, memory, ...) -> anything` on the inner memory."""
  return hook and (lambda params, memory, *args: hook(params, memory['inner'], *args))


def _predicting(hook: PredictHook) -> PredictHook:
  """`predict` on the inner memory, in parts where it has some."""
  if not isinstance(hook, Parts):
    return _reading(hook)
  weights, combine = _reading(hook.weights), _reading(hook.combine)
  return dataclasses.replace(hook, weights=weights, combine=combine)


def _reading_memory(hook: Any) -> Any:
  """`(memory, ...) -> anything` on the inner memory."""
  return lambda memory, *args: hook(memory['inner'], *args)


def _changing_memory(hook: Any) -> Any:
  """`(params, memory, ...) -> memory`"""

  def run(params: Params, memory: Any, *args: Any) -> Any:
    return {**memory, 'inner': hook(params, memory['inner'], *args)}

  return hook and run


def _changing_both(hook: Any) -> Any:
  """`(params, memory, ...) -> (params, memory)`"""

  def run(params: Params, memory: Any, *args: Any) -> tuple[Params, Any]:
    params, new = hook(params, memory['inner'], *args)
    return params, {**memory, 'inner': new}

  return hook and run


def _projecting(hook: Any) -> Any:
  """`(grads, params, memory, ...) -> grads`"""
  return hook and (lambda grads, params, memory, *args: hook(grads, params, memory['inner'], *args))
