"""Methods and transforms by kind: what the trainer, or a method, has code of its own for.

Where all of a kind take the same way through the library, a test of that way runs one of them. What
each of them computes is checked in its own test file, and in the tests of all that are cheap.
"""

import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
from tinies import tiny_peft
from tiny_runs import tiny_method, tiny_vit

from pecft_jax.continual.plan import Step, plan_of
from pecft_jax.peft.halves import split_kept
from pecft_jax.typing import ContinualMethod, Fit

# What is None where a method does without, but for what no phase of a run looks at.
_HOOKS = [
  name
  for name, default in ContinualMethod._field_defaults.items()
  if default is None and name not in ('head', 'adapted', 'settings')
]


def one_of_each(
  names: Iterable[str], kind: Callable[[str], Hashable], *, preferred: Iterable[str] = ()
) -> tuple[str, ...]:
  """Of each kind the first name, or the first that is preferred, in the order of the names."""
  names, found = tuple(names), {}
  for name in (*preferred, *names):
    found.setdefault(kind(name), name)
  return tuple(name for name in names if name in found.values())


def kind_of_step(step: Step) -> str:
  """What the loop has code of its own for."""
  if isinstance(step, Fit):
    return 'fit on data' if step.steps is None else 'fit on memory'
  return step if isinstance(step, str) else type(step).__name__


@functools.cache
def kinds_in_method(name: str) -> frozenset[str]:
  """The hooks, kinds of phases and of answers that a method, by name, has."""
  method = tiny_method(name)
  trains = {f'trains in task {task}' for task in range(2) if method.trains(task)}
  return frozenset(
    {hook for hook in _HOOKS if getattr(method, hook) is not None}
    | {kind_of_step(step) for step in plan_of(method) if not isinstance(step, str)}
    | {type(method.predict).__name__, method.capacity.problem.name}
    | ({'cumulative'} if method.cumulative else set())
    | trains
  )


@functools.cache
def _shapes() -> Any:
  """Of the weights that transforms are shown on."""
  return jax.eval_shape(tiny_vit().init, jax.random.key(0))


@functools.cache
def kind_of_peft(name: str) -> tuple[Hashable, ...]:
  """What methods and the trainer see of a transform: its hooks, sites, and what it keeps."""
  made, sites = tiny_peft(name), tiny_vit().sites
  kinds = {spec.site.path: spec.site.kind for spec in sites}
  hooks = [hook for hook, own in made._asdict().items() if own and hook != 'settings']
  delta = jax.eval_shape(lambda weights: made.init(jax.random.key(0), sites, weights), _shapes())
  names = delta if isinstance(delta, dict) else ()
  kept = bool(jax.tree.leaves(split_kept(delta)[1]))
  return (*hooks, *sorted({kinds[name] for name in names if name in kinds}), kept)
