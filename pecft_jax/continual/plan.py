"""The phases of a task, in order: those that every method has, and its own between them."""

from typing import NamedTuple

from pecft_jax.typing import ContinualMethod, Phase

# Before the first of them a run may evaluate, and after the last it does.
DEFAULT = ('begin', 'prepare', 'train', 'consolidate', 'end')
_RESERVED = (*DEFAULT, 'start', 'evaluate')


class Calibrating(NamedTuple):
  """A pass over the task's data for the calibration of a fresh delta."""

  name: str
  entry: str  # Of `params`, with the transform of `ContinualMethod.transforms`.


class Calibrated(NamedTuple):
  """The end of that pass: the delta as it is trained then."""

  name: str
  entry: str


Step = str | Phase | Calibrating | Calibrated


def plan_of(method: ContinualMethod) -> tuple[Step, ...]:
  """The phases of a task: names of `DEFAULT` and the method's own phases, in order.

  Transforms that are calibrated have their pass after 'begin'.

  A phase of the method's own comes after the phase that its `after` names, and after those of its
  own that follow the same phase and were declared earlier.

  Raises:
    ValueError: for two phases of one name, or a phase whose `after` is not in the plan.

  Example:
    >>> from pecft_jax.typing import Once
    >>> own = Once('design', lambda params, memory, env, key: (params, memory), after='prepare')
    >>> class Method: name, phases, transforms = 'mine', (own,), {}
    >>> [each if isinstance(each, str) else each.name for each in plan_of(Method)]
    ['begin', 'prepare', 'design', 'train', 'consolidate', 'end']
  """
  own = {phase.name: phase for phase in method.phases}
  if len(own) < len(method.phases) or set(own) & set(_RESERVED):
    names = [phase.name for phase in method.phases]
    raise ValueError(
      f'{method.name}: expected phases with names of their own, none of {list(_RESERVED)}, '
      f'got {names}'
    )
  following: dict[str, list[Phase]] = {}
  for phase in method.phases:
    following.setdefault(phase.after, []).append(phase)
  found: list[Step] = []

  def visit(name: str, entry: str | Phase) -> None:
    found.append(entry)
    if name == 'begin':
      for at, transform in method.transforms.items():
        if transform.calibrate is not None:
          found.extend([Calibrating(f'calibrate {at}', at), Calibrated(f'calibrated {at}', at)])
    for phase in following.pop(name, []):
      visit(phase.name, phase)

  for name in DEFAULT:
    visit(name, name)
  if following or 'end' in {phase.after for phase in method.phases}:
    lost = {phase.name: phase.after for phase in method.phases}
    choices = [*DEFAULT[:-1], *own]
    raise ValueError(
      f'{method.name}: phases follow others as in {lost}; expected `after` to be one of {choices}, '
      'without a circle'
    )
  return tuple(found)


def has_phase(method: ContinualMethod, step: Step, task: int) -> bool:
  """Whether task `t` has a phase of the plan."""
  match step:
    case 'train':
      return method.trains(task)
    case 'begin' | 'prepare' | 'consolidate' | 'end':
      # Tasks begin and end for the trainer, too: it changes the task and the optimizer's state.
      return step in ('begin', 'end') or getattr(method, step) is not None
    case Calibrating() | Calibrated():
      return task == 0 or step.entry in method.renewed
    case str():
      raise ValueError(f'unknown phase {step!r}')
  return step.when(task)


def phase_names(method: ContinualMethod) -> tuple[str, ...]:
  """The names of `plan_of(method)`."""
  return tuple(each if isinstance(each, str) else each.name for each in plan_of(method))
