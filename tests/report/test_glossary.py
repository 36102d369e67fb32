"""How values and metrics are written."""

import pytest

from pecft_jax.metrics import ACCURACY, Measure, metrics_of
from pecft_jax.report import glossary

ERROR = Measure('squared error', 0.0, float('inf'), False)
EARNED = Measure('reward', -10.0, 10.0)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (glossary.level(ACCURACY, 0.9123), '91.2 %'),
    (glossary.level(ERROR, 0.012345), '0.0123'),
    (glossary.change(ACCURACY, 0.41), '+41.0'),
    (glossary.change(EARNED, 0.25), '+0.25'),
    (glossary.change(EARNED, -0.25), '−0.25'),
    (glossary.titled('Forgetting', ACCURACY, difference=True), 'Forgetting (points)'),
    (glossary.titled('Average accuracy', ACCURACY), 'Average accuracy (%)'),
    (glossary.titled('Average squared error', ERROR), 'Average squared error'),
  ],
)
def test_only_fractions_are_in_percent(text, expected):
  assert text == expected


def test_forgetting_is_an_amount_and_transfer_a_change():
  metrics = {metric.name: metric for metric in metrics_of(ACCURACY)}
  assert glossary.written(metrics['forgetting'], 0.042) == '4.2'
  assert glossary.written(metrics['bwt'], 0.042) == '+4.2'
  assert glossary.written(metrics['bwt'], -0.042) == '−4.2'
