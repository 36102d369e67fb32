"""The optimizer of a task: any optax transformation, with a schedule over the task's progress."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.paths import map_named, matching
from pecft_jax.settings import recorded

Array = jax.Array
Schedule = Callable[[Array], Array]  # progress in [0, 1] through a task -> factor of the rate


class Recipe(NamedTuple):
  """How parameters are updated.

  Attributes:
    tx: its `update` takes `progress` [] in [0, 1] as an extra argument, so tasks
      of different lengths share one compiled step. Its state starts afresh
      with each task.
    rate: progress -> learning rate, for the log.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  tx: optax.GradientTransformationExtraArgs
  rate: Schedule
  settings: Mapping[str, Any] | None = None


def constant(progress: Array) -> Array:
  """The full rate throughout."""
  return jnp.ones_like(progress)


def cosine(progress: Array) -> Array:
  """From 1 to 0 along half a cosine."""
  return 0.5 * (1 + jnp.cos(jnp.pi * progress))


@recorded
def warmup(share: float, then: Schedule) -> Schedule:
  """Rises linearly over the first `share` of a task, then runs another schedule over the rest."""
  if not 0 < share < 1:
    raise ValueError(f'share must be in (0, 1), got {share}')

  def schedule(progress):
    rest = then(jnp.clip((progress - share) / (1 - share), 0, 1))
    return jnp.where(progress < share, progress / share, rest)

  return schedule


@recorded
def recipe(
  direction: optax.GradientTransformation,
  learning_rate: float,
  *,
  schedule: Schedule = cosine,
  weight_decay: float = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """The usual order: clip, direction, decoupled weight decay, rate; averaged over micro-batches.

  Args:
    direction: as `optax.scale_by_adam()` or `optax.trace(0.9)`, without a rate.
    learning_rate: the peak.
    schedule: of the rate over each task.
    weight_decay: decoupled, as in AdamW.
    clip: largest global norm of the gradient, or None.
    accumulate: micro-batches per update; an update then uses their mean gradient. What is
      left over at the end of a task is not used.

  Raises:
    ValueError: for a rate that is not positive, or fewer than one micro-batch.
  """
  if learning_rate <= 0:
    raise ValueError(f'learning_rate must be positive, got {learning_rate}')
  if accumulate < 1:
    raise ValueError(f'accumulate must be at least 1, got {accumulate}')
  rate = lambda progress: learning_rate * schedule(progress)
  parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
  parts += [direction]
  parts += [optax.add_decayed_weights(weight_decay)] if weight_decay else []
  tx = optax.chain(*parts, _scale_by_progress(rate))
  if accumulate > 1:
    # Not its `gradient_transformation()`, which would not pass the progress on.
    several: Any = optax.MultiSteps(tx, accumulate)
    tx = optax.GradientTransformationExtraArgs(several.init, several.update)
  return Recipe(optax.with_extra_args_support(tx), rate)


@recorded
def adam(
  learning_rate: float,
  *,
  schedule: Schedule = cosine,
  weight_decay: float = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """`recipe` with Adam's direction (AdamW, with `weight_decay`).

  >>> adam(1e-3, clip=1.0).settings['clip']
  1.0
  """
  return recipe(
    optax.scale_by_adam(),
    learning_rate,
    schedule=schedule,
    weight_decay=weight_decay,
    clip=clip,
    accumulate=accumulate,
  )


@recorded
def sgd(
  learning_rate: float,
  *,
  momentum: float = 0.9,
  schedule: Schedule = cosine,
  weight_decay: float = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """`recipe` with momentum."""
  return recipe(
    optax.trace(decay=momentum),
    learning_rate,
    schedule=schedule,
    weight_decay=weight_decay,
    clip=clip,
    accumulate=accumulate,
  )


@recorded
def grouped(recipe: Recipe, factors: Mapping[str, float]) -> Recipe:
  """A recipe with rates of their own for groups of parameters.

  What the optimizer returns is scaled last, so a factor also scales decoupled
  weight decay. The log shows the rate of parameters that no pattern matches.

  Args:
    recipe: any.
    factors: factor of the rate by regex, searched in the path of a leaf of
      `params` (`head/kernel`); the first that is found counts.

  Raises:
    ValueError: for a negative factor; when the optimizer starts, for a pattern
      that matches no leaf.

  Example:
    >>> import jax.numpy as jnp
    >>> slow = grouped(sgd(0.1, momentum=0.0, schedule=constant), {'^delta': 0.01})
    >>> params = {'delta': jnp.ones(1), 'head': jnp.ones(1)}
    >>> updates, _ = slow.tx.update(params, slow.tx.init(params), params, progress=jnp.zeros(()))
    >>> round(float(updates['delta'][0]), 4), round(float(updates['head'][0]), 4)
    (-0.001, -0.1)
  """
  for pattern, factor in factors.items():
    if factor < 0:
      raise ValueError(f'expected factors that are not negative, got {factor} for {pattern!r}')

  def scale(tree: Any) -> Any:
    def of(name: str, leaf: Any) -> Any:
      del leaf
      return next((f for pattern, f in factors.items() if re.search(pattern, name)), 1.0)

    return map_named(of, tree)

  def init(params):
    for pattern in factors:
      matching(pattern, params)  # Raises where a pattern matches nothing.
    return recipe.tx.init(params)

  def update(updates, state, params=None, **extra):
    updates, state = recipe.tx.update(updates, state, params, **extra)
    return jax.tree.map(lambda factor, leaf: factor * leaf, scale(updates), updates), state

  return Recipe(optax.GradientTransformationExtraArgs(init, update), recipe.rate)


def _scale_by_progress(rate: Schedule) -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, **extra):
    del params
    factor = -rate(extra['progress'])
    return optax.tree.scale(factor, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
