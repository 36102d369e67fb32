"""All metrics of a run that its evidence allows."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pecft_jax.measures import ACCURACY, Measure
from pecft_jax.metrics import anytime, performance, plasticity, stability, zero_shot
from pecft_jax.metrics.anytime import Evaluation
from pecft_jax.metrics.matrix import Matrix, PerTask, square, validate
from pecft_jax.metrics.record import Metric

_THEMES = (performance, stability, plasticity, zero_shot, anytime)
# Metrics with a column in tables of several methods come first.
METRICS: tuple[Metric, ...] = tuple(
  sorted((metric for theme in _THEMES for metric in theme.METRICS), key=lambda each: not each.main)
)


@functools.cache
def metrics_of(measure: Measure) -> tuple[Metric, ...]:
  """`METRICS` with the names and range of a measure.

  Args:
    measure: what the matrix of a run holds.

  >>> metrics_of(Measure('squared error', 0.0, 4.0, False))[0].name
  'average_squared_error'
  """
  return tuple(metric.of(measure) for metric in METRICS)


def summarise(
  matrix: Matrix,
  sizes: PerTask | None = None,
  *,
  joint: PerTask | None = None,
  single: PerTask | None = None,
  start: PerTask | None = None,
  evaluations: Sequence[Evaluation] | None = None,
  measure: Measure = ACCURACY,
) -> dict[str, float]:
  """The metrics of `results.json`, under their names there: those whose evidence is given.

  Args:
    matrix: [k, T], k <= T; zero-shot metrics need the entries above its diagonal.
    sizes: [T], examples in the test sets, for union accuracies.
    joint: [T], joint training on tasks 1..k evaluated on task k, for `intransigence`.
    single: [T], the same model trained on each task alone, for `fwt`.
    start: [T], the model before the first task, for `fwt_gem`.
    evaluations: all of a run, where it has more than those at task ends, in order.
    measure: what the matrix holds.

  Raises:
    ValueError: for values out of the measure's range, and for shapes that do not fit.

  >>> summarise([[0.9, None], [0.7, 0.8]])['average_accuracy']
  0.75
  """
  a = validate(matrix, measure)
  complete = len(a) > 1 and not np.isnan(square(a)).any()
  sign = measure.sign  # All functions are written for measures of which more is better.
  values = {
    'matrix': a,
    'zero_shot': a if complete else None,
    'joint': joint,
    'single': single,
    'start': start,
  }
  signed = lambda value: sign * np.asarray(value, np.float64)
  evidence: dict[str, Any] = {k: signed(v) for k, v in values.items() if v is not None}
  if sizes is not None:
    evidence['sizes'] = sizes
  if evaluations is not None:
    evidence['evaluations'] = [Evaluation(t, signed(row).tolist()) for t, row in evaluations]
  out = {}
  for metric in metrics_of(measure):
    if len(a) >= metric.tasks and evidence.keys() >= set(metric.needs):
      value = float(metric.function(*(evidence[name] for name in metric.needs)))
      out[metric.name] = (value if metric.difference else sign * value) + 0.0  # Never minus zero.
  return out
