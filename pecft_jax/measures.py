"""Measures: the quantity that an evaluation gives for each test set."""

from typing import NamedTuple


class Measure(NamedTuple):
  """A sum over examples (or tokens) divided by their count.

  Attributes:
    name: in words, as in `accuracy` or `mean squared error`.
    low: lowest value it can take.
    high: highest value.
    higher_is_better: whether more is better.

  >>> Measure('mean squared error', 0.0, float('inf'), higher_is_better=False).key
  'mean_squared_error'
  """

  name: str
  low: float
  high: float
  higher_is_better: bool = True

  @property
  def key(self) -> str:
    """The name as a part of names in files."""
    return self.name.replace(' ', '_')

  @property
  def sign(self) -> int:
    """1 where higher is better, else -1."""
    return 1 if self.higher_is_better else -1

  @property
  def direction(self) -> str:
    """`higher` or `lower`: which values are better."""
    return 'higher' if self.higher_is_better else 'lower'

  @property
  def percent(self) -> bool:
    """Whether values are fractions, which are written in percent."""
    return (self.low, self.high) == (0.0, 1.0)


ACCURACY = Measure('accuracy', 0.0, 1.0)


def check_measure(measure: Measure) -> Measure:
  """Checks a measure, and returns it.

  Raises:
    ValueError: for a name other than words, or an empty range.

  >>> check_measure(ACCURACY).sign
  1
  """
  if not measure.key.isidentifier():
    raise ValueError(f'expected the name of a measure to be words, got {measure.name!r}')
  if not measure.low < measure.high:
    raise ValueError(f'{measure.name}: expected low < high, got {measure.low} and {measure.high}')
  return measure
