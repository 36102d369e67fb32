"""What a source sets together for a method, each value with where it stands."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from pecft_jax.recipes import Recipe, Schedule, cosine, recipe
from pecft_jax.settings import recorded


class Preset(NamedTuple):
  """Settings of one method from one source.

  Attributes:
    method: its name.
    options: arguments by the name of a method, wrapper or transform.
    recipe: peak rate -> optimizer of a task; None where nothing is trained.
    learning_rate: the peak rate.
    epochs: passes over the data of a task.
    batch_size: of training.
    views: names of what the source does to training images, in words.
    value_range: what values the source's images have, in words.
    model: the backbone that the source uses, in timm's naming where it has one.
    data: the benchmark, in words.
    where: repository, file and commit, or paper.
    departs: what this library does otherwise than the source.
    recalled: names of fields that are from memory, and not read at the source.
    peft: name of the transform; the method's own where None.
    wrap: names of wrappers, the first innermost.
  """

  method: str
  options: Mapping[str, Mapping[str, Any]]
  recipe: Callable[[float], Recipe] | None
  learning_rate: float | None
  epochs: int
  batch_size: int
  views: str
  value_range: str
  model: str
  data: str
  where: str
  departs: tuple[str, ...] = ()
  recalled: tuple[str, ...] = ()
  peft: str | None = None
  wrap: tuple[str, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """All values, for listings."""
    named = self.recipe(self.learning_rate) if self.recipe and self.learning_rate else None
    facts = {**self._asdict(), 'recipe': named.settings if named is not None else None}
    wrapped = ''.join(f', in {name}' for name in self.wrap)
    return {'summary': f'{self.method}{wrapped}, {self.data}', **facts}


@recorded
def sgd_with_l2(
  learning_rate: float,
  *,
  weight_decay: float,
  momentum: float = 0.9,
  schedule: Schedule = cosine,
) -> Recipe:
  """SGD as in PyTorch: the decay is part of the gradient that momentum adds up.

  Args:
    learning_rate: the peak.
    weight_decay: factor of the parameters in the gradient.
    momentum: without dampening.
    schedule: of the rate over each task.

  >>> sgd_with_l2(0.01, weight_decay=5e-4).settings['momentum']
  0.9
  """
  direction = optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))
  return recipe(direction, learning_rate, schedule=schedule)
