"""A preset: all settings of a method in one source, each with its place there."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from pecft_jax.data import Augmentation
from pecft_jax.recipes import Recipe, grouped, recipe
from pecft_jax.schedules import Schedule, cosine
from pecft_jax.settings import recorded

UNVERIFIED = 'unverified'  # In place of a place in the source: the value was not checked there.


class ValueRange(NamedTuple):
  """Normalisation of pixels in 0..1, (x - mean) / std; one value per channel, or one for all."""

  mean: tuple[float, ...]
  std: tuple[float, ...]

  def of(self, channels: int) -> dict[str, tuple[float, ...]]:
    """Options of a backbone's factory for a number of channels.

    Raises:
      ValueError: if the source has another number of channels.

    >>> UNIT_RANGE.of(3)
    {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)}
    """
    if len(self.mean) not in (1, channels):
      raise ValueError(
        f'the source normalises {len(self.mean)} channels, the backbone reads {channels}: keep the '
        "backbone's own value range with --value-range own"
      )
    spread = lambda values: values * (channels if len(values) == 1 else 1)
    return {'mean': spread(self.mean), 'std': spread(self.std)}


UNIT_RANGE = ValueRange((0.0,), (1.0,))  # Pixels in 0..1 as they are.
CIFAR_RANGE = ValueRange((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
CLIP_RANGE = ValueRange((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Preset(NamedTuple):
  """Settings of one method from one source.

  Attributes:
    method: its name.
    options: arguments by the name of a method, wrapper or transform.
    recipe: peak rate -> optimizer of a task, with its groups; None where nothing is trained.
    learning_rate: the peak rate.
    epochs: passes over the data of a task.
    batch_size: of training.
    views: side of the images in pixels -> what the source does to training images; None where
      its inputs are no images, or are trained as they are.
    value_range: of the source's images; None where its inputs are no images.
    model: the backbone that the source uses, in timm's naming where it has one.
    data: the benchmark, in words.
    source: repository and commit, or paper.
    where: names of values by where in the source they stand, as in
      `{'exps/l2p.json': ('epochs', 'options.l2p')}`; `options.l2p` names all below it.
    departs: where this library differs from the source.
    peft: name of the transform; the method's own where None.
    wrap: names of wrappers, the first innermost.
    head: name of the head; the method's own where None.
  """

  method: str
  options: Mapping[str, Mapping[str, Any]]
  recipe: Callable[[float], Recipe] | None
  learning_rate: float | None
  epochs: int
  batch_size: int
  views: Callable[[int], Augmentation] | None
  value_range: ValueRange | None
  model: str
  data: str
  source: str
  where: Mapping[str, tuple[str, ...]]
  departs: tuple[str, ...] = ()
  peft: str | None = None
  wrap: tuple[str, ...] = ()
  head: str | None = None

  @property
  def values(self) -> dict[str, Any]:
    """All settings of the source, by name, as JSON: `epochs`, `options.l2p.pool`, ..."""
    named = self.recipe(self.learning_rate) if self.recipe and self.learning_rate else None
    found = {
      'method': self.method,
      'peft': self.peft,
      'wrap': list(self.wrap) or None,
      'head': self.head,
      'recipe': named and named.settings,
      'learning_rate': self.learning_rate,
      'epochs': self.epochs,
      'batch_size': self.batch_size,
      'views': self.views and self.views(224).settings,
      'value_range': self.value_range and self.value_range._asdict(),
      'model': self.model,
      'data': self.data,
    }
    for part, options in self.options.items():
      found |= {f'options.{part}.{name}': value for name, value in options.items()}
    return {name: value for name, value in found.items() if value is not None}

  def stands(self, name: str) -> str:
    """Where in the source a value of `values` stands; `UNVERIFIED` where that was not read.

    Raises:
      ValueError: if `where` does not say so exactly once.

    >>> from pecft_jax.presets import preset
    >>> preset('l2p@pilot').stands('options.l2p.pull')
    'exps/l2p.json'
    """
    covers = lambda each: name == each or name.startswith(f'{each}.')
    found = [place for place, names in self.where.items() if any(map(covers, names))]
    if len(found) != 1:
      raise ValueError(f'{self.source}: {name} stands in {found}, expected one place')
    return found[0]

  def as_json(self) -> dict[str, Any]:
    """All values with where they stand, for listings."""
    wrapped = ''.join(f', in {name}' for name in self.wrap)
    values = {
      name: {'value': value, 'where': self.stands(name)} for name, value in self.values.items()
    }
    return {
      'summary': f'{self.method}{wrapped}, {self.data}',
      'source': self.source,
      'values': values,
      'departs': list(self.departs),
    }


@recorded
def sgd_with_l2(
  learning_rate: float,
  *,
  weight_decay: float = 0.0,
  momentum: float = 0.9,
  nesterov: bool = False,
  schedule: Schedule = cosine,
) -> Recipe:
  """SGD as in PyTorch: the decay is part of the gradient that momentum adds up.

  Args:
    learning_rate: the peak.
    weight_decay: factor of the parameters in the gradient.
    momentum: without dampening.
    nesterov: whether the step looks ahead.
    schedule: of the rate over each task.

  >>> sgd_with_l2(0.01, weight_decay=5e-4).settings['momentum']
  0.9
  """
  direction = optax.chain(
    optax.add_decayed_weights(weight_decay), optax.trace(momentum, nesterov=nesterov)
  )
  return recipe(direction, learning_rate, schedule=schedule)


@recorded
def slow_backbone(
  learning_rate: float, *, factor: float, weight_decay: float, schedule: Schedule
) -> Recipe:
  """`sgd_with_l2` with a fraction of the head's rate for the delta, as SLCA trains.

  Args:
    learning_rate: the peak of the head.
    factor: of the delta's rate.
    weight_decay: as in `sgd_with_l2`.
    schedule: as in `sgd_with_l2`.

  >>> import jax.numpy as jnp
  >>> from pecft_jax.schedules import constant
  >>> slow = slow_backbone(0.01, factor=0.01, weight_decay=0.0, schedule=constant)
  >>> params = {'delta': jnp.ones(1), 'head': jnp.ones(1)}
  >>> updates, _ = slow.tx.update(params, slow.tx.init(params), params, progress=jnp.zeros(()))
  >>> round(float(updates['delta'][0]), 6), round(float(updates['head'][0]), 6)
  (-0.0001, -0.01)
  """
  plain = sgd_with_l2(learning_rate, weight_decay=weight_decay, schedule=schedule)
  return grouped(plain, {'^delta': factor})


@recorded
def slow_head(
  learning_rate: float, *, factor: float, weight_decay: float, schedule: Schedule = cosine
) -> Recipe:
  """`sgd_with_l2` with a fraction of the delta's rate for the head, as MOS trains.

  Args:
    learning_rate: the peak of the delta.
    factor: of the head's rate.
    weight_decay: as in `sgd_with_l2`.
    schedule: as in `sgd_with_l2`.

  >>> slow_head(0.03, factor=0.1, weight_decay=5e-4).settings['factor']
  0.1
  """
  plain = sgd_with_l2(learning_rate, weight_decay=weight_decay, schedule=schedule)
  return grouped(plain, {'^head': factor})
