"""How a wrapper is made: every hook of the inner method, some of them replaced.

A wrapper's memory is `{'inner': memory of the inner method, ...}`.
"""

from typing import Any

from pecft_jax.typing import ContinualMethod


def wrap(inner: ContinualMethod, name: str, **hooks: Any) -> ContinualMethod:
  """A method that does what `inner` does, but for the given hooks.

  Args:
    inner: any method.
    name: of the wrapper; the result is called `name(inner)`.
    **hooks: fields of `ContinualMethod`; they see the wrapper's memory.

  Raises:
    ValueError: if the inner method trains nothing after its first task (there
      is nothing to forget then), or sees all data anyway.
  """
  if not inner.trains(1):
    raise ValueError(
      f'{name} has no effect on {inner.name}, which trains nothing after the first task; '
      'wrap a method that trains on every task'
    )
  if inner.cumulative:
    raise ValueError(f'{name} has no meaning around {inner.name}, which keeps all data anyway')

  def read(hook):
    return lambda params, memory, *args: hook(params, memory['inner'], *args)

  def write(hook):
    def run(params, memory, *args):
      return {**memory, 'inner': hook(params, memory['inner'], *args)}

    return run

  def both(hook):
    def run(params, memory, *args):
      params, new = hook(params, memory['inner'], *args)
      return params, {**memory, 'inner': new}

    return run

  passed: dict[str, Any] = {
    'forward': read(inner.forward),
    'loss': read(inner.loss),
    'predict': read(inner.predict),
    'begin_task': both(inner.begin_task),
    'end_task': both(inner.end_task),
    'observe': write(inner.observe),
    'project': lambda grads, memory, env: inner.project(grads, memory['inner'], env),
  }
  if inner.adapted is not None:
    passed['adapted'] = read(inner.adapted)
  # Passes over the data that do nothing inside must stay recognisable as such.
  defaults = ContinualMethod._field_defaults
  for hook in ('prepare', 'consolidate'):
    if getattr(inner, hook) is not defaults[hook]:
      passed[hook] = write(getattr(inner, hook))
  return inner._replace(name=f'{name}({inner.name})', **{**passed, **hooks})
