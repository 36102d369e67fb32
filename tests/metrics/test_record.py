"""One record for each metric."""

import math

from pecft_jax.metrics import ACCURACY, METRICS, Measure, metrics_of

ERROR = Measure('squared error', 0.0, 4.0, False)


def test_records_are_complete_and_names_are_unique():
  for measure in (ACCURACY, ERROR):
    found = metrics_of(measure)
    assert len({each.name for each in found}) == len({each.title for each in found}) == len(found)
    for metric in found:
      assert '{' not in metric.name + metric.title + metric.definition
      assert metric.name.isidentifier()
      assert metric.definition.endswith('.')
      assert metric.range[0] < metric.range[1]
      assert metric.paper.startswith('arXiv:')


def test_columns_come_first():
  assert [each.main for each in METRICS] == sorted((each.main for each in METRICS), reverse=True)


def test_levels_of_an_error_are_errors_and_differences_stay_gains():
  level, change = (
    next(m for m in metrics_of(ERROR) if m.name == name)
    for name in ('average_squared_error', 'bwt')
  )
  assert (level.title, level.range, level.direction) == (
    'Average squared error', (0.0, 4.0), 'lower'
  )  # fmt: skip
  assert (change.range, change.direction) == ((-4.0, 4.0), 'higher')
  inclusive = next(m for m in metrics_of(ERROR) if m.name == 'forgetting_inclusive')
  assert (inclusive.range, inclusive.direction) == ((0.0, 4.0), 'lower')


def test_unbounded_measures_have_unbounded_differences():
  error = Measure('perplexity', 1.0, math.inf, False)
  for metric in metrics_of(error):
    assert not any(map(math.isnan, metric.range))
