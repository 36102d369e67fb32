"""How values of a measure and of its metrics are written: in percent where they are fractions."""

from pecft_jax import text
from pecft_jax.metrics import Measure, Metric

NAMES = {
  'finetune': 'sequential fine-tuning',
  'masked_finetune': 'masked fine-tuning',
  'masked_probe': 'masked linear probe',
  'joint': 'joint training',
}


def level(measure: Measure, value: float) -> str:
  """A value with its unit: `91.2 %` of an accuracy, `0.0312` of an error."""
  return text.percent(value) if measure.percent else bare(measure, value)


def bare(measure: Measure, value: float) -> str:
  """A value, or a difference of two, without its unit, rounded to the digits that matter."""
  return text.number(100 * value) if measure.percent else text.rounded(value)


def change(measure: Measure, value: float) -> str:
  """A difference with its sign, in points where values are in percent: `+41.0`."""
  if measure.percent:
    return text.points(value)
  return text.rounded(value) if value <= 0 else f'+{text.rounded(value)}'


def unit(measure: Measure, difference: bool = False) -> str:
  """The unit of a bare value: `%`, `points`, or nothing."""
  return ('points' if difference else '%') if measure.percent else ''


def titled(title: str, measure: Measure, difference: bool = False) -> str:
  """The title of a column of bare values: `Forgetting (points)`."""
  behind = unit(measure, difference)
  return f'{title} ({behind})' if behind else title


def written(metric: Metric, value: float) -> str:
  """A metric's value with its unit."""
  if not metric.difference:
    return level(metric.measure, value)
  # A loss is written as an amount, a gain as a change with its sign.
  write = bare if metric.direction == 'lower' else change
  return write(metric.measure, value)
