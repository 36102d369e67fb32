"""Checks a method before it is run: every function is traced, none is compiled."""

from typing import Any

import jax

from pecft_jax.devices.sharding import one_device
from pecft_jax.recipes import Recipe, adam
from pecft_jax.train.abstract import arguments
from pecft_jax.train.step import compile_steps
from pecft_jax.typing import ContinualMethod, Fit, Once


def check_method(
  method: ContinualMethod, *, recipe: Recipe | None = None, batch_size: int = 5
) -> None:
  """Traces every function of a run, on shapes alone, and checks for common mistakes.

  It takes seconds, whatever the size of the model. A run finds the same mistakes when it reaches
  the hook, except keys that are used twice.

  Args:
    method: any.
    recipe: the optimizer; Adam by default.
    batch_size: B of all batches.

  Raises:
    TypeError: for a hook that does not return what it should.
    ValueError: for phases that cannot be ordered; a hook that changes a name, a
      shape or a dtype of what it carries, uses a traced value as a Python
      value, or uses a key twice; a leaf that cannot be trained, or is in both
      params and memory; a loss or a regulariser of another shape.

  Example:
    >>> from pecft_jax.backbones import vit
    >>> from pecft_jax.continual import finetune
    >>> from pecft_jax.typing import Capacity
    >>> model = vit(image_size=4, channels=1, patch=2, width=8, depth=1, heads=2,
    ...             mean=(0.5,), std=(0.5,))
    >>> check_method(finetune(model, Capacity(tasks=2, classes=4)))
  """
  frozen = jax.eval_shape(method.backbone.init, jax.eval_shape(lambda: jax.random.key(0)))
  optimizer = adam(1e-3) if recipe is None else recipe
  steps = compile_steps(method, optimizer, one_device(), frozen)
  given = arguments(steps, method, frozen, batch_size)

  def trace(hook: str, run: Any, arguments: tuple[Any, ...]) -> None:
    if run is None:
      return
    try:
      with jax.debug_key_reuse(True):
        run.trace(*arguments)
    except jax.errors.KeyReuseError as error:
      raise ValueError(
        f'{method.name}: {hook} uses a random key twice: split it, as in '
        'first, second = jax.random.split(key)'
      ) from error

  trace('init', steps.init, given.init)
  trace('begin_task', steps.begin, given.begin)
  trace('prepare', steps.prepare, given.gather)
  trace('the training step', steps.train, given.train)
  trace('consolidate', steps.consolidate, given.gather)
  for phase in method.phases:
    if isinstance(phase, Fit):
      batch = given.train[2:] if phase.steps is None else ()
      number = given.begin[2].index
      trace(phase.name, steps.own[phase.name], (*given.end, *batch, number, number))
    else:
      once = isinstance(phase, Once)
      trace(phase.name, steps.own[phase.name], given.end if once else given.gather)
  trace('end_task', steps.end, given.end)
  trace('predict', steps.predict, given.predict)
  trace('the answers for the host', steps.answer, given.gather)
  if steps.parts is not None:
    slot, slots = given.begin[2].index, steps.parts.slots
    trace('the weights of parts', steps.parts.look, given.end)
    trace('a part', steps.parts.part, (*given.gather, slot))
    found = jax.eval_shape(steps.parts.part, *given.gather, slot)
    trace('combine', steps.parts.combine, (*given.predict, (found,) * slots))
    trace('combine', steps.parts.answer, (*given.gather, (found,) * slots))
