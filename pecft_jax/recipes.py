"""The optimizer of a task: any optax transformation, with a schedule over the task's progress."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pecft_jax.arguments import above, at_least
from pecft_jax.paths import map_named, matches, matching
from pecft_jax.schedules import Schedule, cosine
from pecft_jax.settings import record_line, recorded

Array = jax.Array


class Recipe(NamedTuple):
  """How parameters are updated.

  Attributes:
    tx: its `update` takes `progress` [] in [0, 1] as an extra argument, so tasks
      of different lengths share one compiled step. Its state is reset
      at each task.
    rate: progress -> learning rate, for the log.
    factors: (pattern of parameters, factor of the rate), for the log; see `grouped`.
    settings: the factory's name and arguments, from `pecft_jax.settings.recorded`.
  """

  tx: optax.GradientTransformationExtraArgs
  rate: Schedule
  settings: Mapping[str, Any] | None = None
  factors: tuple[tuple[str, float], ...] = ()

  def __repr__(self) -> str:
    """The settings in a line."""
    return record_line(self)


@recorded
def recipe(
  direction: optax.GradientTransformation,
  learning_rate: float,
  *,
  schedule: Schedule = cosine,
  weight_decay: float | Mapping[str, float] = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """The usual order: clip, direction, decoupled weight decay, rate; averaged over micro-batches.

  Args:
    direction: as `optax.scale_by_adam()` or `optax.trace(0.9)`, without a rate.
    learning_rate: the peak.
    schedule: of the rate over each task.
    weight_decay: decoupled, as in AdamW; or by regex, searched in the path of a leaf of `params`:
      the first match decides, and what matches none has no decay, as in
      `{'bias|scale': 0.0, '.': 0.1}`.
    clip: largest global norm of the gradient, or None.
    accumulate: micro-batches per update, which then is that of one batch as large as all of
      them: their gradients are averaged over the examples, and its progress is that of the
      large batch. The last update of a task takes those that are left over.

  Raises:
    ValueError: for a rate or a norm that is not positive, a negative decay, or fewer than one
      micro-batch; when the optimizer starts, for a pattern that matches no leaf.

  >>> from pecft_jax.schedules import warmup
  >>> lion = recipe(optax.scale_by_lion(), 1e-4, schedule=warmup(0.1, cosine), clip=1.0)
  >>> round(float(lion.rate(jnp.asarray(0.1))), 6)
  0.0001
  """
  above(0, learning_rate=learning_rate, clip=clip)
  if isinstance(weight_decay, Mapping):
    at_least(0, **{f'weight_decay of {pattern!r}': each for pattern, each in weight_decay.items()})
  else:
    at_least(0, weight_decay=weight_decay)
  at_least(1, accumulate=accumulate)
  rate = lambda progress: learning_rate * schedule(progress)
  parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
  parts += [direction]
  if isinstance(weight_decay, Mapping):
    parts += [_decayed(weight_decay)]
  elif weight_decay:
    parts += [optax.add_decayed_weights(weight_decay)]
  tx = optax.chain(*parts, _scale_by_progress(rate))
  tx = _accumulated(tx, accumulate) if accumulate > 1 else tx
  return Recipe(optax.with_extra_args_support(tx), rate)


@recorded
def adam(
  learning_rate: float,
  *,
  schedule: Schedule = cosine,
  weight_decay: float | Mapping[str, float] = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """`recipe` with Adam's direction (AdamW, with `weight_decay`).

  Args:
    learning_rate: the peak.
    schedule: of the rate over each task.
    weight_decay: decoupled, as in AdamW; or by regex, searched in the path of a leaf of `params`:
      the first match decides, and what matches none has no decay, as in
      `{'bias|scale': 0.0, '.': 0.1}`.
    clip: largest global norm of the gradient, or None.
    accumulate: micro-batches per update, as in `recipe`.

  Raises:
    ValueError: for a rate that is not positive, or fewer than one micro-batch.

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
  weight_decay: float | Mapping[str, float] = 0.0,
  clip: float | None = None,
  accumulate: int = 1,
) -> Recipe:
  """`recipe` with momentum.

  Args:
    learning_rate: the peak.
    momentum: factor of the running sum of gradients.
    schedule: of the rate over each task.
    weight_decay: decoupled, as in AdamW; or by regex, searched in the path of a leaf of `params`:
      the first match decides, and what matches none has no decay, as in
      `{'bias|scale': 0.0, '.': 0.1}`.
    clip: largest global norm of the gradient, or None.
    accumulate: micro-batches per update, as in `recipe`.

  Raises:
    ValueError: as `recipe`, and for a momentum outside [0, 1).

  >>> sgd(0.1).settings['name']
  'sgd'
  """
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum must be in [0, 1), got {momentum}')
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
  """A recipe with a learning rate for each group of parameters.

  What the optimizer returns is scaled last, so a factor also scales decoupled
  weight decay, as a rate does. The log shows the rate of parameters that no pattern matches, and
  that of each group as `learning_rates`. Head and delta often want rates of their own: where old
  features drift, `grouped(adam(1e-2), {'^delta': 0.01})` gives the delta 1e-4.

  Args:
    recipe: any.
    factors: factor of the rate by regex, searched in the path of a leaf of
      `params` (`head/kernel`); the first match decides.

  Raises:
    ValueError: for a negative factor; when the optimizer starts, for a pattern
      that matches no leaf.

  Example:
    >>> import jax.numpy as jnp
    >>> from pecft_jax.schedules import constant
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
      return next((f for pattern, f in factors.items() if matches(pattern, name)), 1.0)

    return map_named(of, tree)

  def init(params):
    for pattern in factors:
      matching(pattern, params)  # Raises where a pattern matches nothing.
    return recipe.tx.init(params)

  def update(updates, state, params=None, **extra):
    updates, state = recipe.tx.update(updates, state, params, **extra)
    return jax.tree.map(lambda factor, leaf: factor * leaf, scale(updates), updates), state

  tx = optax.GradientTransformationExtraArgs(init, update)
  return Recipe(tx, recipe.rate, factors=tuple({**dict(recipe.factors), **factors}.items()))


@recorded
def with_rates(recipe: Recipe, learning_rate: float, rates: Mapping[str, float]) -> Recipe:
  """`grouped`, with the peak rates of the groups instead of factors.

  Args:
    recipe: with that peak rate, without groups.
    learning_rate: the peak rate of the recipe, which all other parameters have.
    rates: peak rates by regex, as the factors of `grouped`; 0 freezes a group.

  Raises:
    ValueError: as `grouped`; for a rate that is not positive, or a recipe with groups of its own.

  >>> slow = with_rates(adam(1e-2), 1e-2, {'^delta': 1e-4})
  >>> slow.factors
  (('^delta', 0.01),)
  """
  above(0, learning_rate=learning_rate)
  _check_no_groups(recipe)
  return grouped(recipe, {pattern: rate / learning_rate for pattern, rate in rates.items()})


@recorded
def lora_plus(recipe: Recipe, ratio: float = 16.0) -> Recipe:
  """LoRA+: a recipe in which the factors B of LoRA learn faster than the factors A.

  Hayou et al., 2024, arXiv:2402.12354. With the rate of the recipe for A, and for all else, that of
  B is `ratio` times as high; the paper recommends 16, and a rate of A below that of LoRA. Factors B
  are the trained leaves named `b`: of `lora`, `rslora`, `dora`, `pissa` and others that are a
  product A B. It is `grouped(recipe, {'(^|/)b$': ratio})`.

  Hugging Face's peft gives all vectors the rate of B, the bias of a classifier too; here the head
  has the rate of the recipe.

  Args:
    recipe: without groups of its own.
    ratio: of the rate of B to that of A, at least 1.

  Raises:
    ValueError: for a ratio below 1, or a recipe with groups; when the optimizer starts, where no
      leaf is named `b`.

  >>> lora_plus(adam(1e-4)).factors
  (('(^|/)b$', 16.0),)
  """
  at_least(1, ratio=ratio)
  _check_no_groups(recipe)
  return grouped(recipe, {'(^|/)b$': ratio})


def _check_no_groups(recipe: Recipe) -> None:
  if recipe.factors:
    raise ValueError(
      f'the recipe has groups of its own, {dict(recipe.factors)}: give `grouped` all of them'
    )


def _decayed(decays: Mapping[str, float]) -> optax.GradientTransformation:
  """Adds a share of the parameters to the updates, by group."""

  def init(params):
    for pattern in decays:
      matching(pattern, params)  # Raises where a pattern matches nothing.
    return optax.EmptyState()

  def update(updates, state, params=None):
    of = lambda name: next((d for pattern, d in decays.items() if matches(pattern, name)), 0.0)
    shares = map_named(lambda name, leaf: of(name), updates)
    return jax.tree.map(lambda u, d, p: u + d * p, updates, shares, params), state

  return optax.GradientTransformation(init, update)


class Accumulated(NamedTuple):
  """Gradients of the micro-batches of one update so far, and the inner optimizer's state."""

  inner: Any
  sums: Any  # As the parameters: gradients times weights.
  weight: Array  # [], sum of the weights.
  count: Array  # [] int32, micro-batches.
  progress: Array  # [], at the first of them.


def _accumulated(
  tx: optax.GradientTransformation, every: int
) -> optax.GradientTransformationExtraArgs:
  """An update after every `every` gradients, and at the end of a task.

  Of the extra arguments, `weight` [] is how much a gradient counts (its valid examples; 1 by
  default), `last` [] bool whether it is the last one of the task, and `steps` [] how many there
  are, by which progress is counted in updates.
  """

  def init(params):
    zero = jnp.zeros(())
    sums = jax.tree.map(jnp.zeros_like, params)
    return Accumulated(tx.init(params), sums, zero, jnp.zeros((), jnp.int32), zero)

  def update(updates, state, params=None, **extra):
    progress, weight, last = (
      extra.pop('progress'),
      extra.pop('weight', 1.0),
      extra.pop('last', False),
    )
    steps = extra.pop('steps', None)
    if steps is not None:  # Progress counted in updates, as with large batches.
      number, of = jnp.round(progress * steps), jnp.asarray(steps, jnp.float32)
      progress = jnp.floor(number / every) / jnp.ceil(of / every)
    weight = jnp.asarray(weight, jnp.float32)
    progress = jnp.where(state.count == 0, progress, state.progress)
    sums = jax.tree.map(lambda s, g: s + weight.astype(g.dtype) * g, state.sums, updates)
    total, count = state.weight + weight, state.count + 1

    def step(_):
      divisor = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
      means = jax.tree.map(lambda s: s / divisor.astype(s.dtype), sums)
      found, inner = optax.with_extra_args_support(tx).update(
        means, state.inner, params, progress=progress, **extra
      )
      zeros = jax.tree.map(jnp.zeros_like, sums)
      none = jnp.zeros_like(total)
      return found, Accumulated(inner, zeros, none, jnp.zeros_like(count), none)

    def wait(_):
      zeros = jax.tree.map(jnp.zeros_like, updates)
      return zeros, Accumulated(state.inner, sums, total, count, progress)

    return jax.lax.cond((count >= every) | last, step, wait, None)

  return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_progress(rate: Schedule) -> optax.GradientTransformationExtraArgs:
  def update(updates, state, params=None, **extra):
    del params
    factor = -rate(extra['progress'])
    return optax.tree.scale(factor, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
