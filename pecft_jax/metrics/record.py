"""One record for each metric."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from pecft_jax.measures import ACCURACY, Measure

Direction = Literal['higher', 'lower']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """A metric: how it is computed, and what a reader needs to understand its value.

  Texts may contain `{measure}`; `of` fills it in. Range and direction are written
  for a measure in [0, 1] of which more is better.

  Attributes:
    name: key in `results.json`.
    function: takes the evidence named in `needs`, in this order; returns a float.
    title: of a row or a column.
    definition: one sentence.
    needs: names of evidence, see `pecft_jax.metrics.summarise`.
    tasks: fewest finished tasks that it is defined for.
    range: lowest and highest value.
    direction: which values are better.
    difference: whether it is a difference of two values of the measure.
    main: whether tables of several methods have a column for it; the others are in
      `results.json` and on the page of a run.
    paper: where it was defined.
    measure: what it is a metric of.
  """

  name: str
  function: Callable[..., float]
  title: str
  definition: str
  needs: tuple[str, ...] = ('matrix',)
  tasks: int = 1
  range: tuple[float, float] = (0.0, 1.0)
  direction: Direction = 'higher'
  difference: bool = False
  main: bool = False
  paper: str = ''
  measure: Measure = ACCURACY

  def of(self, measure: Measure) -> 'Metric':
    """The metric of another measure: with its words, range and direction.

    Differences are computed with their sign such that a gain is positive, whatever
    direction the measure has; the mean of an error stays an error.
    """
    fill = lambda text: text.replace('{measure}', measure.name)
    low, high = measure.low, measure.high
    direction = self.direction
    if self.difference:
      span = tuple(0.0 if side == 0 else side * (high - low) for side in self.range)
    else:
      span = (low, high)
      if measure.sign < 0:
        direction = 'lower' if direction == 'higher' else 'higher'
    return dataclasses.replace(
      self,
      name=self.name.replace('{measure}', measure.key),
      title=fill(self.title),
      definition=fill(self.definition),
      range=span,
      direction=direction,
      measure=measure,
    )
